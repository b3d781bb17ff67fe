"""WebDataset shards."""

import json
import tarfile
from pathlib import Path

import pytest

from rebar.beton.images import omitted_by
from rebar.beton.write_report import report_path
from rebar.sources import Request, open_source
from tests.sources.conftest import (
    SYNSETS,
    add_file,
    contents_of_folder,
    error_of,
    images_of_folder,
    images_of_source,
    open_location,
    run_writer,
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
    assert "in1k-val-0002.tar and 1 more file" in str(error)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"9.cls": "-1"}, "9.cls does not contain a class"),
        ({"9.cls": "2.5"}, "9.cls does not contain a class"),
        ({"9.cls": "1e12"}, "9.cls does not contain a class"),
        ({"9.cls": " "}, "9.cls does not contain a class"),
        ({"9.cls": "dog"}, "Use one form"),
        ({"9.json": '{"label": true}'}, "9.json does not contain a class"),
        ({"9.json": "3"}, "9.json does not contain a class"),
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


def pack(path: Path, *files: tuple[str, bytes | str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            add_file(tar, name, content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("names", [("0.depth.png", "0.jpg"), ("0.jpg", "0.png"), ("0.jpg", "0.jpg")])
def test_ambiguous_samples_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    pack(tmp_path / "train-0.tar", *((name, b"1") for name in ("0.cls", *names)))
    error = error_of(tmp_path, "train")
    assert error.code == "webdataset-ambiguous"
    if len(set(names)) > 1:
        assert "--image-key" in str(error)
        assert all(name.partition(".")[2] in str(error) for name in names)


@pytest.mark.parametrize("image_key", ["jpg", ".JPG", "depth.png", "input"])
def test_image_key_selects_the_image_of_every_sample(image_key: str, tmp_path: Path) -> None:
    extension = image_key.lower().removeprefix(".")
    files = [(f"0.{name}", name) for name in ("depth.png", "jpg", "input")]
    pack(tmp_path / "train-0.tar", ("0.cls", "0"), *files, ("1.cls", "0"), ("1.tif", "another"))
    _, source = open_source(Request(str(tmp_path), "train", image_key=image_key))
    assert [source.read(index).decode() for index in range(len(source))] == [extension]
    assert omitted_by(source) == {f"sample without .{extension}": 1}


def test_image_key_without_effect_warns(imagenet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_source(Request(str(imagenet), "val", image_key="jpg"))
    assert "--image-key has no effect" in capsys.readouterr().err


def test_equal_keys_in_several_shards_are_different_samples(tmp_path: Path) -> None:
    for number in range(20):  # enough for worker processes
        pack(tmp_path / f"train-{number:02}.tar", ("0.jpg", str(number)), ("0.cls", str(number % 3)))
    source = open_location(tmp_path, "train")
    assert [source.read(index) for index in range(20)] == [str(number).encode() for number in range(20)]
    assert [source.label(index) for index in range(20)] == [number % 3 for number in range(20)]
    assert len({source.name(index) for index in range(20)}) == 20


def test_files_of_a_sample_need_not_be_adjacent(tmp_path: Path) -> None:
    pack(tmp_path / "train-0.tar", ("0.jpg", "a"), ("0.cls", "1"), ("1.jpg", "b"), ("2.jpg", "c"), ("1.cls", "2"))
    source = open_location(tmp_path, "train")
    assert [(source.read(index), source.label(index)) for index in range(len(source))] == [(b"a", 1), (b"b", 2)]


def test_omitted_samples_are_counted(tmp_path: Path) -> None:
    pack(tmp_path / "train-0.tar", ("0.jpg", "a"), ("0.cls", "1"), ("1.jpg", "b"), ("2.cls", "0"), ("._0.jpg", "x"))
    pack(tmp_path / "train-1.tar", ("0.jpg", "a"), ("3.cls", "0"))
    assert omitted_by(open_location(tmp_path, "train")) == {
        "hidden file or folder": 1,
        "sample without a .cls or .json file": 2,
        "sample without an image": 2,
    }


def test_omitted_samples_are_printed_and_in_the_report(imagenet: Path, tmp_path: Path) -> None:
    jpeg = contents_of_folder(imagenet / "val")[0][1]
    pack(tmp_path / "val-0.tar", ("0.jpg", jpeg), ("0.cls", "0"), ("1.jpg", jpeg), ("2.jpg", jpeg))
    target = tmp_path / "val.beton"
    done = run_writer("--split", "val", "--data-dir", tmp_path, "--write-path", target, "--num-workers", 1)
    assert done.returncode == 0, done.stderr
    kind = "sample without a .cls or .json file"
    assert f"2 x {kind}" in done.stdout
    assert json.loads(report_path(target).read_text())["omitted"] == {kind: 2}


def test_shards_without_any_complete_sample_are_refused(tmp_path: Path) -> None:
    pack(tmp_path / "train-0.tar", ("0.jpg", "a"), ("1.cls", "0"))
    assert error_of(tmp_path, "train", kind="webdataset").code == "source-empty"


@pytest.mark.parametrize("is_json", [False, True])
def test_labels_written_as_floats_are_numbers(is_json: bool, tmp_path: Path) -> None:
    for key, label in enumerate(("1e1", "2.0", "2", "2.", "+3E0")):
        label = json.dumps({"label": label if key % 2 else float(label)}) if is_json else label
        pack(tmp_path / f"train-{key}.tar", (f"{key}.jpg", "image"), (f"{key}.{'json' if is_json else 'cls'}", label))
    source = open_location(tmp_path, "train")
    assert [source.label(index) for index in range(5)] == [10, 2, 2, 2, 3]


def test_too_few_class_names_are_refused(imagenet: Path, tmp_path: Path) -> None:
    folder = write_shards(imagenet, tmp_path / "shards", "cls")
    (folder / "classes.txt").write_text("only\n")
    assert error_of(folder, "val").code == "webdataset-label-invalid"
