"""Channel statistics: measured, written, read, refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rebar.errors import RebarError
from rebar.loading import CenterCrop, Loader
from rebar.loading.device import IMAGENET_MEAN, IMAGENET_STD, ChannelStatistics, read_statistics
from tests.conftest import Data, run


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_without_a_file_they_are_imagenets() -> None:
    assert read_statistics("") == ChannelStatistics(IMAGENET_MEAN, IMAGENET_STD)


def test_both_scales_are_understood(tmp_path: Path) -> None:
    small = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "num_samples": 3}
    large = {name: [value * 255 for value in small[name]] for name in ("mean", "std")}  # type: ignore[union-attr]
    shares, values = (read_statistics(write(tmp_path / "s.json", content)) for content in (small, large))
    assert shares == ChannelStatistics((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert (*values.mean, *values.std) == pytest.approx((*shares.mean, *shares.std))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mean": [0.5, 0.4, 0.3]}, "'std' must be a list of three numbers"),
        ({"mean": [0.5, 0.4], "std": [1, 1, 1]}, "'mean' must be a list of three numbers"),
        ({"mean": [0.5, 0.4, "x"], "std": [1, 1, 1]}, "'mean' must be a list of three numbers"),
        ([1, 2], "'mean' must be"),
        ({"mean": [0.5, 0.4, 0.3], "std": [0.2, 0, 0.2]}, "deviations above 0"),
    ],
    ids=str,
)
def test_what_is_no_statistics_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RebarError, match=message):
        read_statistics(write(tmp_path / "s.json", content))
    with pytest.raises(RebarError, match="cannot be read"):
        read_statistics(tmp_path / "none.json")


def test_what_the_writer_measures_is_read(data: Data) -> None:
    run("write_dataset.py", "--stats", data.train)
    found = read_statistics(data.train.with_name(data.train.name + ".stats.json"))
    loader = Loader(data.train, 16, cropper=CenterCrop(1.0), resolution=128)
    means = [batch.images.numpy().mean((0, 1, 2)) / 255 for batch in loader]
    np.testing.assert_allclose(found.mean, np.mean(means, axis=0), atol=0.01)
