"""Files that were written in parts are one dataset."""

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
    """What the fixture ``beton`` holds, in three files."""
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


def test_samples_come_in_the_order_of_the_files(parts: list[Path], beton: BetonFile) -> None:
    joined = open_betons(parts)
    assert len(joined) == 24
    for name in ("labels", "heights", "widths", "modes", "sizes"):
        assert np.array_equal(getattr(joined, name), getattr(beton, name))
    assert all(np.array_equal(joined.image_bytes(i), beton.image_bytes(i)) for i in range(24))
    assert (joined.class_names, joined.num_classes) == (beton.class_names, 3)
    assert np.array_equal(pickle.loads(pickle.dumps(joined)).labels, joined.labels)


def test_pages_and_regions_are_told_apart(parts: list[Path]) -> None:
    joined = open_betons(parts)
    files, offsets, sizes = joined.regions(np.array([23, 9, 0]))
    assert files.tolist() == [2, 1, 0]
    for file, offset, size, index in zip(files, offsets, sizes, (23, 9, 0), strict=True):
        content = parts[file].read_bytes()[int(offset) : int(offset + size)]
        assert content == joined.image_bytes(index).tobytes()
    pages = joined.pages(np.arange(24))
    for start, end in PARTS:
        assert not set(pages[start:end]) & {*pages[:start], *pages[end:]}


@pytest.mark.parametrize("how", ["pattern", "list"])
def test_a_loader_makes_the_batches_of_one_file(how: str, parts: list[Path], beton: BetonFile) -> None:
    files = str(parts[0].parent / "train-*.beton") if how == "pattern" else parts
    one, several = (
        Loader(name, 5, 2, False, OrderOption.RANDOM, cropper=RandomResizedCrop(), resolution=32, drop_last=False)
        for name in (beton.path, files)
    )
    for expected, batch in zip(one, several, strict=True):
        assert np.array_equal(batch.images, expected.images)
        assert np.array_equal(batch.labels, expected.labels)


def test_a_corrupt_image_is_named_by_its_file(parts: list[Path], tmp_path: Path) -> None:
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


def test_what_does_not_belong_together_is_refused(parts: list[Path], image_tree: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "tree" / name).mkdir(parents=True)
        (tmp_path / "tree" / name / "0.JPEG").write_bytes(next(image_tree.rglob("*.JPEG")).read_bytes())
    other = tmp_path / "other.beton"
    write_beton(ImageFolder(tmp_path / "tree"), other, policy=ImagePolicy(), order=np.arange(2), progress=False)
    with pytest.raises(BetonError, match="do not name the same classes"):
        open_betons([*parts, other])
    with pytest.raises(BetonError, match="no file matches this pattern"):
        open_betons(str(tmp_path / "none-*.beton"))
    with pytest.raises(BetonError, match=r"no \.beton file was given"):
        open_betons([])
    with pytest.raises(BetonError, match="no such file"):
        open_betons([parts[0], tmp_path / "missing.beton"])


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    odd = tmp_path / "train[1].beton"
    odd.write_bytes(b"")
    assert find_betons(str(odd)) == [odd]
