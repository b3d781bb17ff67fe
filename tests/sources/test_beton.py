"""A .beton file as a source."""

from pathlib import Path

import numpy as np
import pytest

from rebar.beton import BetonFile, ImagePolicy, write_beton
from rebar.sources import ImageFolder
from tests.sources.conftest import SYNSETS, images_of_folder, images_of_source, open_location


@pytest.fixture
def raw(imagenet: Path, tmp_path: Path) -> Path:
    """A folder with the validation images as val.beton, raw."""
    source, folder = ImageFolder(imagenet / "val"), tmp_path / "betons"
    folder.mkdir()
    policy = ImagePolicy(max_resolution=0, write_mode="raw")
    write_beton(source, folder / "val.beton", policy=policy, order=np.arange(len(source)), progress=False)
    return folder


def test_open_source_of_a_beton_or_its_folder(imagenet: Path, raw: Path) -> None:
    for location in (raw, raw / "val.beton"):
        source = open_location(location, "val")
        assert tuple(source.class_names) == SYNSETS
        assert images_of_source(source) == images_of_folder(imagenet / "val")


def test_rewriting_at_a_lower_resolution(raw: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.beton"
    policy = ImagePolicy(max_resolution=16)
    write_beton(open_location(raw, "val"), small, policy=policy, order=np.array([0, 1, 3, 4, 6, 7]), progress=False)
    file = BetonFile.open(small)
    assert np.maximum(file.heights, file.widths).tolist() == [16] * 6
    assert file.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_file_of_stock_ffcv_has_numbers_as_class_names(imagenet: Path, tmp_path: Path) -> None:
    fields, writer = pytest.importorskip("ffcv.fields"), pytest.importorskip("ffcv.writer")
    folder = images_of_folder(imagenet / "val")
    images = [(np.frombuffer(p, np.uint8).reshape(-1, 30, 3), SYNSETS.index(name)) for name, p in folder]
    kinds = {"image": fields.RGBImageField(write_mode="raw"), "label": fields.IntField()}
    path = tmp_path / "stock.beton"
    writer.DatasetWriter(str(path), kinds, num_workers=1).from_indexed_dataset(images)
    expected = [(str(SYNSETS.index(name)), pixels) for name, pixels in folder]
    assert images_of_source(open_location(path, "val")) == expected
