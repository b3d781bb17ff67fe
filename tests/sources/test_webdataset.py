"""WebDataset shards."""

import json
import tarfile
from pathlib import Path

import pytest

from tests.sources.conftest import (
    SYNSETS,
    add_file,
    contents_of_folder,
    error_of,
    images_of_folder,
    images_of_source,
    open_location,
)


def write_shards(imagenet: Path, folder: Path, form: str) -> Path:
    """Write two shards per split; the class is a number (cls), a name, or in JSON."""
    folder.mkdir()
    for split in ("train", "val"):
        contents = contents_of_folder(imagenet / split)
        for number in range(2):
            with tarfile.open(folder / f"in1k-{split}-{number:04}.tar", "w") as tar:
                for key, (synset, jpeg) in list(enumerate(contents))[number::2]:
                    label = str(SYNSETS.index(synset))
                    forms = {"cls": label, "name": synset, "json": json.dumps({"label": int(label), "width": 3})}
                    add_file(tar, f"{key:06}.jpg", jpeg)
                    add_file(tar, f"{key:06}.{'json' if form == 'json' else 'cls'}", forms[form].encode())
    return folder


@pytest.mark.parametrize("form", ["cls", "name", "json"])
def test_open_source_of_a_folder_of_shards(form: str, imagenet: Path, tmp_path: Path) -> None:
    folder = write_shards(imagenet, tmp_path / "shards", form)
    if form == "cls":
        (folder / "classes.txt").write_text("\n".join(SYNSETS))
    expected = images_of_folder(imagenet / "val")
    if form == "json":
        expected = [(str(SYNSETS.index(name)), pixels) for name, pixels in expected]
    assert images_of_source(open_location(folder, "val")) == expected[0::2] + expected[1::2]


def test_open_source_expands_shard_patterns(imagenet: Path, tmp_path: Path) -> None:
    folder = write_shards(imagenet, tmp_path / "shards", "name")
    assert len(open_location(folder / "in1k-val-{0000..0001}.tar", "val")) == 9
    assert len(open_location(folder / "*-val-*1.tar", "val")) == 4
    assert len(open_location(folder / "in1k-val-0000.tar", "val")) == 5
    error = error_of(folder / "in1k-val-{0000..0003}.tar", "val")
    assert error.code == "source-not-found"
    assert "in1k-val-0002.tar: no such file; 1 more" in str(error)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "Add 9.cls or 9.json"),
        ({"9.cls": "-1"}, "'-1' is not a class"),
        ({"9.cls": "dog"}, "Use one form"),
        ({"9.json": '{"width": 3}'}, "9.json does not contain a class"),
        ({"9.json": '{"label": [1, 2]}'}, "9.json does not contain a class"),
    ],
)
def test_sample_without_a_usable_class_is_refused(
    files: dict[str, str], expected: str, imagenet: Path, tmp_path: Path
) -> None:
    folder = write_shards(imagenet, tmp_path / "shards", "cls")
    with tarfile.open(folder / "in1k-val-0002.tar", "w") as tar:
        add_file(tar, "9.jpg", b"image")
        for name, content in files.items():
            add_file(tar, name, content.encode())
    error = error_of(folder, "val")
    assert error.code == "webdataset-label-invalid"
    assert expected in str(error)


@pytest.mark.parametrize("names", [("0.depth.png", "0.jpg"), ("0.jpg", "0.png"), ("0.jpg", "0.jpg")])
def test_ambiguous_samples_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name in ("0.cls", *names):
            add_file(tar, name, b"1")
    assert error_of(tmp_path, "train").code == "webdataset-ambiguous"


def test_labels_written_as_floats_are_numbers(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for key, label in enumerate(("10.0", "2.0", "2")):
            add_file(tar, f"{key}.jpg", b"image")
            add_file(tar, f"{key}.cls", label.encode())
    source = open_location(tmp_path, "train")
    assert [source.label(index) for index in range(3)] == [10, 2, 2]


def test_too_few_class_names_are_refused(imagenet: Path, tmp_path: Path) -> None:
    folder = write_shards(imagenet, tmp_path / "shards", "cls")
    (folder / "classes.txt").write_text("only\n")
    assert error_of(folder, "val").code == "webdataset-label-invalid"
