"""scripts/build_fashion_mnist_tree.py: images, classes, and repeated calls."""

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "build_fashion_mnist_tree.py"
PER_CLASS = 4


def build(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Fashion-MNIST files with images of gray level 20 × label."""
    folder = tmp_path / "source"
    folder.mkdir()
    labels = np.tile(np.arange(10, dtype=np.uint8), PER_CLASS)
    images = np.broadcast_to(labels[:, None, None] * np.uint8(20), (len(labels), 28, 28))
    for name in ("train", "t10k"):
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels)
    return folder


def test_images_are_in_the_folder_of_their_class(source: Path, tmp_path: Path) -> None:
    result = build("--out", tmp_path / "tree", "--source", source, "--val-per-class", "2")
    assert result.returncode == 0, result.stderr
    for split, count in (("train", PER_CLASS), ("val", 2)):
        folders = sorted(path for path in (tmp_path / "tree" / split).iterdir())
        assert folders[0].name == "0_t-shirt"
        assert [len(list(folder.glob("*.JPEG"))) for folder in folders] == [count] * 10
        for label, folder in enumerate(folders):
            image = Image.open(next(folder.glob("*.JPEG")))
            assert (image.mode, image.size) == ("RGB", (28, 28))
            assert np.abs(np.asarray(image, dtype=int) - 20 * label).max() <= 2


def test_repeated_call_rebuilds_only_incomplete_trees(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "tree"
    build("--out", out, "--source", source)
    assert "already complete" in build("--out", out, "--source", source).stdout
    next(out.glob("train/*/*.JPEG")).unlink()
    assert "80 images" in build("--out", out, "--source", source).stdout
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_other_contents_are_not_overwritten(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "tree"
    build("--out", out, "--source", source)
    assert "another selection" in build("--out", out, "--source", source, "--val-per-class", "1").stderr
    assert "contains other files" in build("--out", source, "--source", source).stderr


def test_incomplete_tree_with_a_file_of_the_user_is_kept(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "tree"
    build("--out", out, "--source", source)
    for image in list(out.glob("train/*/*.JPEG"))[:2]:
        image.unlink()
    mine = out / "train/0_t-shirt/mine.JPEG"
    for path in (mine, mine.with_name("mine.txt")):
        path.write_bytes(b"mine")
        failed = build("--out", out, "--source", source)
        assert failed.returncode == 1
        assert str(path) in failed.stderr
        assert path.read_bytes() == b"mine"
        path.unlink()


@pytest.mark.parametrize(
    "contents", [b"not gzip", gzip.compress(struct.pack(">4I", 0x803, 9, 28, 28))], ids=["not gzip", "too short"]
)
def test_damaged_source_is_a_one_line_error(contents: bytes, source: Path, tmp_path: Path) -> None:
    (source / "train-images-idx3-ubyte.gz").write_bytes(contents)
    result = build("--out", tmp_path / "tree", "--source", source)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "tree").exists()


def test_missing_source_names_the_files(tmp_path: Path) -> None:
    assert "train-images-idx3-ubyte.gz" in build("--out", tmp_path / "tree", "--source", tmp_path).stderr
