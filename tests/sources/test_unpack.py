"""Unpacking a source to class folders."""

import tarfile
from pathlib import Path

import pytest

from rebar.errors import RebarError
from rebar.sources.unpack import main, unpack


class Images:
    """Three images of two classes; the last has no file name."""

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


def test_unpack_skips_complete_images(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("options", [["--absent"], ["a", "b", "--split", "test"]])
def test_usage_error_is_one_line(options: list[str]) -> None:
    with pytest.raises(RebarError) as raised:
        main(options)
    assert raised.value.code == "config-invalid-value"


@pytest.mark.parametrize("target", ["/proc/absent/here", "/proc"])
def test_target_is_checked_before_the_source_is_opened(target: str) -> None:
    with pytest.raises(RebarError) as raised:
        main(["/absent", target])
    assert raised.value.code == "file-not-writable"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "../up", ".hidden", "nul\0", "x" * 300])
def test_class_name_that_is_no_folder_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RebarError) as raised:
        unpack(Images(["fine", name]), tmp_path, progress=False)
    assert raised.value.code == "unpack-class-name-invalid"
    assert list(tmp_path.iterdir()) == []


def test_unpack_keeps_images_with_equal_names(tmp_path: Path) -> None:
    class Shards(Images):
        def name(self, index: int) -> str:
            return f"train-{index}.tar:{('0001.jpg', '0001.jpg', '0001.JPG')[index]}"

    source = Shards(["n01", "n02"])
    for written in (3, 0):  # the second call finds the files of the first
        assert unpack(source, tmp_path, progress=False) == written
        contents = sorted(path.read_bytes()[0] for path in tmp_path.rglob("*.*"))
        assert contents == [0, 1, 2]
    assert len(list((tmp_path / "n01").iterdir())) == 2


@pytest.mark.parametrize("name", ["..", "a/b", ".hidden", ""])
def test_unpack_refuses_class_names_that_are_not_folder_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(RebarError) as raised:
        unpack(Images(["n01", name]), tmp_path, progress=False)
    assert raised.value.code == "unpack-class-name-invalid"


def test_unpack_names_the_image_that_cannot_be_read(tmp_path: Path) -> None:
    class Broken(Images):
        def read(self, index: int) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(RebarError, match=r"0\.JPEG") as raised:
        unpack(Broken(["n01", "n02"]), tmp_path, progress=False)
    assert raised.value.code == "image-unreadable"


def test_main_unpacks_a_tar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "made" / "train" / "n01").mkdir(parents=True)
    (tmp_path / "made" / "train" / "n01" / "a.JPEG").write_bytes(b"image")
    with tarfile.open(tmp_path / "made.tar", "w") as tar:
        tar.add(tmp_path / "made" / "train", "train")
    arguments = [str(tmp_path / "made.tar"), str(tmp_path / "tree"), "--split"]
    main([*arguments, "train"])
    assert "1 image, 1 new" in capsys.readouterr().out
    assert (tmp_path / "tree/train/n01/a.JPEG").read_bytes() == b"image"
    with pytest.raises(RebarError) as raised:
        main([*arguments, "val"])
    assert raised.value.code == "source-split-not-found"
