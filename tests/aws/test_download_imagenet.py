"""``data obtain``: ImageNet's archives, Kaggle's command line, S3, and local folders."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

import write_dataset
from rebar.aws.download_imagenet import COMPETITION, DEVKIT, PUBLISHED_MD5, TRAIN, VAL
from rebar.beton import BetonFile
from rebar.sources import unpack
from tests.aws.archives import (
    NUM_TRAIN,
    NUM_VAL,
    Web,
    leftovers,
    make_kaggle_zip,
    obtain,
    train_images,
    val_images,
)
from tests.aws.conftest import needs_aria2, run_cli, run_failing

KEY = "0123456789abcdef0123456789abcdef"


def num_written(place: Path, split: str, folder: Path) -> int:
    """Write a .beton of a place; return its number of images."""
    folder.mkdir(exist_ok=True)
    words = ["--split", split, "--data-dir", str(place), "--write-path", f"{folder}/", "--num-workers", "1"]
    write_dataset.main(words)
    return len(BetonFile.open(folder / f"{split}.beton"))


@needs_aria2
@pytest.mark.slow
def test_obtain_downloads_archives_that_are_written_without_unpacking(
    served: Web, archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "imagenet"
    done = run_cli(*obtain(archives, served, to, f"{served.url}/{TRAIN}", f"{served.url}/{VAL}"))
    assert done.out == f"{to}\n"
    assert num_written(to, "train", tmp_path / "betons") == NUM_TRAIN
    assert num_written(to, "val", tmp_path / "betons") == NUM_VAL
    unpack.main([str(to), str(tmp_path / "tree")])
    for split, images in (("train", train_images()), ("val", val_images())):
        for synset, name, content in images:
            assert (tmp_path / "tree" / split / synset / name).read_bytes() == content
    unpack.main([str(to), str(tmp_path / "tree")])
    assert "6 images, 0 new" in capsys.readouterr().out


@needs_aria2
def test_obtain_refuses_a_file_with_a_wrong_md5(served: Web, archives: Path, tmp_path: Path) -> None:
    error = run_failing("data", "obtain", f"{served.url}/{TRAIN}", "--to", tmp_path / "to")
    assert PUBLISHED_MD5[TRAIN] in error
    assert "[md5-mismatch]" in error
    assert not (tmp_path / "to" / TRAIN).exists()
    assert leftovers(tmp_path / "to") == []
    with (archives / VAL).open("r+b") as file:
        file.write(b"damaged")
    assert "[md5-mismatch]" in run_failing(*obtain(archives, served, tmp_path / "to", str(archives)))
    assert (archives / VAL).exists()  # only downloads are deleted


RECORDER = """#!{python}
import os, pathlib, shutil, sys
pathlib.Path({log!r}).write_text("\\n".join(sys.argv[1:]))
if os.environ.get("KAGGLE_KEY") is None:
    sys.exit("401 - Unauthorized")
shutil.copyfile({archive!r}, pathlib.Path(sys.argv[-1], {name!r}))
"""


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``kaggle`` on the PATH that records its arguments and copies this archive."""
    archive = make_kaggle_zip(tmp_path / "made.zip")
    program = tmp_path / "bin" / "kaggle"
    program.parent.mkdir()
    name = f"{COMPETITION}.zip"
    log = str(tmp_path / "arguments")
    program.write_text(RECORDER.format(python=sys.executable, log=log, archive=str(archive), name=name))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    return archive


def test_obtain_kaggle_extracts_a_tree_that_is_written(kaggle: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    done = run_cli("data", "obtain", "kaggle", "--to", to)
    assert done.out == f"{to}\n"
    words = ["competitions", "download", "--competition", COMPETITION, "--path", str(to)]
    assert (tmp_path / "arguments").read_text().split("\n") == words
    assert not (to / "ILSVRC/Annotations").exists()
    for synset, name, content in train_images():
        assert (to / "ILSVRC/Data/CLS-LOC/train" / synset / name).read_bytes() == content
    assert num_written(to, "val", tmp_path / "betons") == NUM_VAL


def test_obtain_kaggle_finishes_an_interrupted_extraction(kaggle: Path, tmp_path: Path) -> None:
    run_cli("data", "obtain", "kaggle", "--to", tmp_path / "to")
    images = sorted((tmp_path / "to/ILSVRC").rglob("*.JPEG"))
    content = images[0].read_bytes()
    images[0].unlink()
    images[0].with_name(f".{images[0].name}.partial").write_bytes(content[:100])
    images[1].unlink()
    kept = images[2].stat().st_mtime_ns
    run_cli("data", "obtain", "kaggle", "--to", tmp_path / "to")
    assert images[0].read_bytes() == content
    assert images[1].exists()
    assert images[2].stat().st_mtime_ns == kept
    assert not list((tmp_path / "to").rglob("*.partial"))


def test_obtain_kaggle_keeps_an_existing_file_that_differs_from_the_archive(kaggle: Path, tmp_path: Path) -> None:
    synset, name, _ = train_images()[0]
    mine = tmp_path / "to/ILSVRC/Data/CLS-LOC/train" / synset / name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert "[write-target-exists]" in run_failing("data", "obtain", "kaggle", "--to", tmp_path / "to")
    assert mine.read_bytes() == b"mine"


def test_obtain_kaggle_detects_a_damaged_zip(kaggle: Path, tmp_path: Path) -> None:
    content = bytearray(kaggle.read_bytes())
    content[200] ^= 255
    kaggle.write_bytes(bytes(content))
    assert "[archive-damaged]" in run_failing("data", "obtain", "kaggle", "--to", tmp_path / "to")


def test_obtain_kaggle_without_credentials(kaggle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAGGLE_KEY")
    error = run_failing("data", "obtain", "kaggle", "--to", tmp_path / "to")
    assert "accept the rules" in error
    assert "[download-failed]" in error


def test_obtain_downloads_archives_from_s3_and_leaves_a_tree_in_place(
    s3: Any, archives: Path, web: Web, tmp_path: Path
) -> None:
    s3.put_object(Bucket="bucket", Key="tree/train/n01440764/a.JPEG", Body=b"image")
    for name in (TRAIN, VAL, DEVKIT):
        s3.upload_file(str(archives / name), "bucket", f"originals/{name}")
    to = tmp_path / "to"
    assert run_cli(*obtain(archives, web, to, "s3://bucket/originals")).out == f"{to}\n"
    assert (to / VAL).read_bytes() == (archives / VAL).read_bytes()
    (to / VAL).write_bytes(b"another version")
    assert "[md5-mismatch]" in run_failing(*obtain(archives, web, to, "s3://bucket/originals"))
    assert (to / VAL).read_bytes() == b"another version"  # an existing file is never replaced
    assert run_cli("data", "obtain", "s3://bucket/tree", "--to", to).out == "s3://bucket/tree\n"


def test_obtain_prints_sources_that_are_read_in_place(tmp_path: Path) -> None:
    assert run_cli("data", "obtain", "hf:imagenet-1k", "--to", tmp_path / "to").out == "hf:imagenet-1k\n"
    assert run_cli("data", "obtain", str(tmp_path), "--to", tmp_path / "to").out == f"{tmp_path}\n"
    assert not (tmp_path / "to").exists()
    error = run_failing("data", "obtain", str(tmp_path / "nothing"), "--to", tmp_path / "to")
    assert "[imagenet-source-unknown]" in error


def test_obtain_refuses_an_invalid_md5_list(tmp_path: Path) -> None:
    (tmp_path / "sums").write_text("nonsense\n")
    error = run_failing("data", "obtain", "hf:imagenet-1k", "--to", tmp_path, "--md5", tmp_path / "sums")
    assert "[md5-list-invalid]" in error
