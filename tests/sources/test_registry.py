"""Detection of the kind of source."""

import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from rebar.errors import RebarError
from rebar.sources import Request, open_source
from rebar.sources.registry import KINDS, detect_kind
from tests.sources.conftest import add_file, error_of, open_location, write_parquet


def kind_of(location: object, split: str = "val") -> str:
    return detect_kind(Request(str(location), split)).name  # type: ignore[arg-type]


def pack(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return path


def test_detect_kind_of_hf_and_s3_addresses() -> None:
    assert kind_of("hf:imagenet-1k") == "hf"
    assert kind_of("s3://bucket/prefix") == "s3"


def test_folders_take_precedence_over_archives_next_to_them(imagenet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "imagenet"
    folder.mkdir()
    for split in ("train", "val"):
        (folder / split).symlink_to(imagenet / split)
        pack(folder / f"ILSVRC2012_img_{split}.tar", "a.JPEG")
    pack(folder / "ILSVRC2012_img_test.tar", "a.JPEG")
    assert kind_of(folder, "train") == kind_of(folder, "val") == "folder"
    (folder / "val").unlink()
    assert kind_of(folder, "val") == "tar"


def test_class_tars_next_to_class_folders_are_not_shards(tmp_path: Path) -> None:
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    pack(tmp_path / "train" / "n01440764.tar", "n01440764_1.JPEG", "n01440764_2.JPEG")
    assert kind_of(tmp_path, "train") == "folder"


def test_shards_and_parquet_files_in_folders(imagenet: Path, tmp_path: Path) -> None:
    pack(tmp_path / "shards" / "val" / "0.tar", "a/1.jpg", "a/1.cls")
    assert kind_of(tmp_path / "shards") == kind_of(tmp_path / "shards" / "val" / "0.tar") == "webdataset"
    assert kind_of(write_parquet(imagenet, tmp_path / "hub")) == "parquet"


@pytest.mark.parametrize(("name", "code"), [("notes.txt", "source-unrecognized"), ("absent", "source-not-found")])
def test_unknown_source_is_reported_in_one_line(name: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    error = error_of(tmp_path / name, "train")
    assert error.code == code
    assert "\n" not in str(error)


def test_chosen_kind_is_not_detected(imagenet: Path) -> None:
    assert len(open_location(imagenet, "val", kind="folder")) == 9
    assert error_of(imagenet, "val", kind="flat").code == "source-empty"


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS if kind.name not in ("hf", "s3")])
def test_chosen_kind_that_does_not_match_is_refused(kind: str, tmp_path: Path) -> None:
    for location in (tmp_path, tmp_path / "absent"):
        assert str(tmp_path) in str(error_of(location, "val", kind=kind))


def test_labels_without_effect_warn(imagenet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_source(Request(str(imagenet), "val", labels="list.txt"))
    assert "--labels has no effect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "location", "fix", "code"),
    [
        ("pyarrow", "a.parquet", "pip install pyarrow", "source-package-missing"),
        ("huggingface_hub", "hf:a/b", "pip install huggingface_hub pyarrow", "source-package-missing"),
        ("boto3", "s3://a/b", r"pip install 'ffcv-rebar\[aws\]'", "aws-boto3-missing"),
    ],
)
def test_open_source_without_the_package_prints_how_to_install_it(
    package: str, location: str, fix: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RebarError, match=fix) as raised:
        open_source(Request(location, "val"))
    assert raised.value.code == code


def shard_of_labels(folder: Path, labels: Sequence[object]) -> Path:
    path = folder / "shard-0.tar"
    with tarfile.open(path, "w") as tar:
        for number, label in enumerate(labels):
            add_file(tar, f"{number:03}.jpg", b"image")
            add_file(tar, f"{number:03}.cls", str(label).encode())
    return path


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ([1, 2, 3, 3], ("from 1 to 3", "without 0.", "4 classes")),
        ([0, 2, 5], ("from 0 to 5", "without 1 and 2 more numbers", "6 classes")),
        (["1.0", "2.0"], ("from 1 to 2", "3 classes")),
        ([7], ("from 7 to 7", "8 classes")),
    ],
)
def test_numeric_labels_with_gaps_give_a_warning(
    labels: list[object], shown: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_location(shard_of_labels(tmp_path, labels), "train")
    assert [source.label(index) for index in range(len(source))] == [int(float(str(label))) for label in labels]
    printed = capsys.readouterr().err
    assert all(text in printed for text in shown)


@pytest.mark.parametrize("labels", [[0, 1, 2], ["a", "b"]])
def test_consecutive_labels_and_names_give_no_warning(
    labels: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_location(shard_of_labels(tmp_path, labels), "train")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("names", "warns"), [(["1", "2", "10"], True), (["1", "2"], True), (["0", "1", "2"], False)])
def test_class_folders_named_by_numbers(
    names: list[str], warns: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(b"image")
    assert list(open_location(tmp_path, "train").class_names) == sorted(names)
    assert ("in alphabetical order" in capsys.readouterr().err) == warns
