"""open_betons: several files as one dataset."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from rebar.beton import BetonError, BetonFile, ImagePolicy, write_beton
from rebar.beton.reader import find_betons, open_betons
from rebar.loading import CenterCrop, CorruptSampleError, Loader, OrderOption, RandomResizedCrop
from rebar.sources import ImageFolder

PARTS = ((0, 9), (9, 10), (10, 24))


@pytest.fixture(scope="module")
def parts(image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The samples of the fixture ``beton``, in three files."""
    folder = tmp_path_factory.mktemp("parts")
    order = np.random.default_rng(1).permutation(24)
    for number, (start, end) in enumerate(PARTS):
        write_beton(
            ImageFolder(image_tree),
            folder / f"train-{number}.beton",
            policy=ImagePolicy(max_resolution=200),
            order=order[start:end],
            progress=False,
        )
    return sorted(folder.glob("*.beton"))


def test_samples_are_in_file_order(parts: list[Path], beton: BetonFile) -> None:
    concatenated = open_betons(parts)
    assert len(concatenated) == 24
    for name in ("labels", "heights", "widths", "modes", "sizes"):
        assert np.array_equal(getattr(concatenated, name), getattr(beton, name))
    assert all(np.array_equal(concatenated.image_bytes(i), beton.image_bytes(i)) for i in range(24))
    assert (concatenated.class_names, concatenated.num_classes) == (beton.class_names, 3)
    assert np.array_equal(pickle.loads(pickle.dumps(concatenated)).labels, concatenated.labels)


def test_pages_and_regions_of_the_parts_are_distinct(parts: list[Path]) -> None:
    concatenated = open_betons(parts)
    files, offsets, sizes = concatenated.regions(np.array([23, 9, 0]))
    assert files.tolist() == [2, 1, 0]
    for file, offset, size, index in zip(files, offsets, sizes, (23, 9, 0), strict=True):
        content = parts[file].read_bytes()[int(offset) : int(offset + size)]
        assert content == concatenated.image_bytes(index).tobytes()
    pages = concatenated.pages(np.arange(24))
    for start, end in PARTS:
        assert not set(pages[start:end]) & {*pages[:start], *pages[end:]}


@pytest.mark.parametrize("how", ["pattern", "list"])
def test_loader_returns_the_batches_of_one_file(how: str, parts: list[Path], beton: BetonFile) -> None:
    files = str(parts[0].parent / "train-*.beton") if how == "pattern" else parts
    one, several = (
        Loader(name, 5, 2, False, OrderOption.RANDOM, cropper=RandomResizedCrop(), resolution=32, drop_last=False)
        for name in (beton.path, files)
    )
    for expected, batch in zip(one, several, strict=True):
        assert np.array_equal(batch.images, expected.images)
        assert np.array_equal(batch.labels, expected.labels)


def test_corrupt_image_is_reported_with_its_file(parts: list[Path], tmp_path: Path) -> None:
    copies = [tmp_path / path.name for path in parts]
    for path, copy in zip(parts, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    second = BetonFile.open(copies[1])
    with copies[1].open("r+b") as file:
        file.seek(int(second.offsets[0]))
        file.write(bytes(100))
    loader = Loader(copies, 24, cropper=CenterCrop(), resolution=16)
    with pytest.raises(CorruptSampleError, match=rf"{copies[1]}: .* sample 9, at byte {second.offsets[0]}") as caught:
        next(iter(loader))
    assert caught.value.index == 9


def test_open_betons_refuses_files_with_other_classes(parts: list[Path], image_tree: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "tree" / name).mkdir(parents=True)
        (tmp_path / "tree" / name / "0.JPEG").write_bytes(next(image_tree.rglob("*.JPEG")).read_bytes())
    other = tmp_path / "other.beton"
    write_beton(ImageFolder(tmp_path / "tree"), other, policy=ImagePolicy(), order=np.arange(2), progress=False)
    with pytest.raises(BetonError) as raised:
        open_betons([*parts, other])
    assert raised.value.code == "beton-classes-differ"


def test_open_betons_refuses_missing_files(parts: list[Path], tmp_path: Path) -> None:
    missing: list[str | list[Path]] = [str(tmp_path / "none-*.beton"), [], [parts[0], tmp_path / "missing.beton"]]
    for paths in missing:
        with pytest.raises(BetonError) as raised:
            open_betons(paths)
        assert raised.value.code == "beton-not-found"


def test_find_betons_prefers_an_existing_file_to_a_pattern(tmp_path: Path) -> None:
    odd = tmp_path / "train[1].beton"
    odd.write_bytes(b"")
    assert find_betons(str(odd)) == [odd]
