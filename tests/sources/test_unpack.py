"""``python -m rebar.sources.unpack``: a source as class folders; what is there already is left."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from rebar.errors import RebarError
from rebar.sources.unpack import unpack


class Images:
    """Three images of two classes; the last has no name of its own."""

    def __init__(self, class_names: list[str]) -> None:
        self.class_names = class_names
        self.read_so_far: list[int] = []

    def __len__(self) -> int:
        return 3

    def label(self, index: int) -> int:
        return index % 2

    def read(self, index: int) -> bytes:
        self.read_so_far.append(index)
        return bytes([index]) * 100

    def name(self, index: int) -> str:
        return f"train.tar:{index}.JPEG" if index < 2 else "train.parquet: row 2"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.JPEG"))}


def test_every_image_has_its_place_and_is_written_once(tmp_path: Path) -> None:
    source = Images(["n01", "n02"])
    assert unpack(source, tmp_path, progress=False) == 3
    expected = {"n01/0.JPEG": b"\0" * 100, "n01/00000002.JPEG": b"\2" * 100, "n02/1.JPEG": b"\1" * 100}
    assert files(tmp_path) == expected
    (tmp_path / "n02/1.JPEG").unlink()
    (tmp_path / "n01/0.JPEG").write_bytes(b"")  # a power cut
    source.read_so_far.clear()
    assert unpack(source, tmp_path, progress=False) == 2
    assert sorted(source.read_so_far) == [0, 1]
    assert files(tmp_path) == expected


@pytest.mark.parametrize("name", ["..", "a/b", ".hidden", ""])
def test_a_class_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RebarError, match="cannot be the name of a folder"):
        unpack(Images(["n01", name]), tmp_path, progress=False)


def test_a_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    class Broken(Images):
        def read(self, index: int) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(RebarError, match=r"0\.JPEG: cannot be read: Input/output error"):
        unpack(Broken(["n01", "n02"]), tmp_path, progress=False)


def test_a_tar_is_unpacked_by_the_command(tmp_path: Path) -> None:
    (tmp_path / "made" / "train" / "n01").mkdir(parents=True)
    (tmp_path / "made" / "train" / "n01" / "a.JPEG").write_bytes(b"image")
    with tarfile.open(tmp_path / "made.tar", "w") as tar:
        tar.add(tmp_path / "made" / "train", "train")
    words = [
        sys.executable,
        "-m",
        "rebar.sources.unpack",
        tmp_path / "made.tar",
        tmp_path / "tree",
        "--split",
        "train",
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert "1 images, 1 of them new" in done.stdout, done.stderr
    assert (tmp_path / "tree/train/n01/a.JPEG").read_bytes() == b"image"
    wrong = subprocess.run([*words[:-1], "val"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: ")
