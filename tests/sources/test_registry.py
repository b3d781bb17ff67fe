"""Which kind of source something is taken for."""

import sys
import tarfile
from pathlib import Path

import pytest

from rebar.errors import RebarError
from rebar.sources import Request, open_source
from rebar.sources.registry import KINDS, recognize
from tests.sources.conftest import write_parquet


def kind_of(where: object, split: str = "val") -> str:
    return recognize(Request(str(where), split)).name  # type: ignore[arg-type]


def pack(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return path


def test_addresses() -> None:
    assert kind_of("hf:imagenet-1k") == "hf"
    assert kind_of("s3://bucket/prefix") == "s3"


def test_unpacked_folders_go_before_archives_beside_them(imagenet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "imagenet"
    folder.mkdir()
    for split in ("train", "val"):
        (folder / split).symlink_to(imagenet / split)
        pack(folder / f"ILSVRC2012_img_{split}.tar", "a.JPEG")
    pack(folder / "ILSVRC2012_img_test.tar", "a.JPEG")
    assert kind_of(folder, "train") == kind_of(folder, "val") == "folder"
    (folder / "val").unlink()
    assert kind_of(folder, "val") == "tar"


def test_class_tars_left_beside_their_folders_are_no_shards(tmp_path: Path) -> None:
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    pack(tmp_path / "train" / "n01440764.tar", "n01440764_1.JPEG", "n01440764_2.JPEG")
    assert kind_of(tmp_path, "train") == "folder"


def test_shards_and_parquet_in_folders(imagenet: Path, tmp_path: Path) -> None:
    pack(tmp_path / "shards" / "val" / "0.tar", "a/1.jpg", "a/1.cls")
    assert kind_of(tmp_path / "shards") == kind_of(tmp_path / "shards" / "val" / "0.tar") == "webdataset"
    assert kind_of(write_parquet(imagenet, tmp_path / "hub")) == "parquet"


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS if kind.name not in ("hf", "s3")])
def test_a_kind_that_it_is_not(kind: str, tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RebarError, match=str(tmp_path)):
            open_source(Request(str(where), "val"), kind)


def test_labels_that_nobody_reads_are_remarked(imagenet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_source(Request(str(imagenet), "val", labels="list.txt"))
    assert "--labels has no effect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "where"), [("pyarrow", "a.parquet"), ("huggingface_hub", "hf:a/b"), ("boto3", "s3://a/b")]
)
def test_a_package_that_is_missing_is_named(
    package: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RebarError, match=f"pip install {package}"):
        open_source(Request(where, "val"))
