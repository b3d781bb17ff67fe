"""Parquet files of images and labels, and folders of Arrow files as ``datasets.save_to_disk`` writes them."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rebar.beton import BetonFile, ImagePolicy, write_beton
from rebar.beton.selection import Selection
from tests.sources.conftest import (
    SYNSETS,
    Write,
    contents_of_folder,
    error_of,
    images_of_beton,
    images_of_folder,
    images_of_source,
    open_location,
    write_parquet,
)


@pytest.fixture
def folder(imagenet: Path, tmp_path: Path) -> Path:
    return write_parquet(imagenet, tmp_path / "hub")


@pytest.mark.parametrize("split", ["train", "val"])
def test_open_source_of_a_folder_of_parquet_files(split: str, imagenet: Path, folder: Path) -> None:
    source = open_location(folder, split)
    assert tuple(source.class_names) == SYNSETS
    assert images_of_source(source) == images_of_folder(imagenet / split)
    assert images_of_source(pickle.loads(pickle.dumps(source))) == images_of_folder(imagenet / split)


def test_worker_processes_write_shuffled_row_groups(imagenet: Path, folder: Path, tmp_path: Path) -> None:
    source, order = Selection(shuffle=True).apply(open_location(folder, "train"))
    policy, target = ImagePolicy(max_resolution=0, write_mode="raw"), tmp_path / "train.beton"
    write_beton(source, target, policy=policy, order=order, num_workers=2, chunk_size=3, progress=False)
    expected, found = images_of_folder(imagenet / "train"), images_of_beton(BetonFile.open(target))
    assert found != expected
    assert sorted(found) == sorted(expected)


def test_parquet_names_contain_file_and_row(folder: Path) -> None:
    source = open_location(folder, "train")
    names = [source.name(index).rpartition("/")[2] for index in range(len(source))]
    assert names == [
        f"train-{file:05}-of-00002.parquet: row {row}" for file, rows in ((0, 8), (1, 7)) for row in range(rows)
    ]


def test_open_source_of_one_parquet_file(folder: Path) -> None:
    assert len(open_location(folder / "data" / "train-00001-of-00002.parquet", "train")) == 7


def test_truncated_file_is_refused(folder: Path) -> None:
    path = folder / "data" / "validation-00000-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    error = error_of(folder, "val")
    assert error.code == "parquet-invalid"
    assert path.name in str(error)


def write_table(path: Path, **columns: Any) -> Path:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_image_column_may_be_named_picture(tmp_path: Path) -> None:
    source = open_location(write_table(tmp_path / "a.parquet", picture=[b"1", b"2"], cls=["dog", "cat"]), "train")
    assert [source.read(index) for index in range(2)] == [b"1", b"2"]
    assert np.array_equal([source.label(index) for index in range(2)], [1, 0])


@pytest.mark.parametrize("labels", [[10.0, 2.0, 2.0], ["10", "2", "2.0"], ["1e1", "2", "2"]])
def test_labels_stored_as_floats_or_text_are_numbers(labels: list[Any], tmp_path: Path) -> None:
    source = open_location(write_table(tmp_path / "a.parquet", image=[b"1", b"2", b"3"], label=labels), "train")
    assert [source.label(index) for index in range(3)] == [10, 2, 2]
    assert source.class_names == [str(number) for number in range(11)]


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view"])
def test_image_column_may_have_any_type_of_bytes(kind: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    images = pyarrow.array([b"1", b"2" * 100], getattr(pyarrow, kind)())
    source = open_location(write_table(tmp_path / "a.parquet", image=images, label=[0, 1]), "train")
    assert [source.read(index) for index in range(2)] == [b"1", b"2" * 100]


def test_unusable_column_is_named(tmp_path: Path) -> None:
    error = error_of(write_table(tmp_path / "a.parquet", image=["a.jpg"], label=[1]), "train")
    assert "column image has type string" in str(error)


def test_missing_image_is_empty(tmp_path: Path) -> None:
    source = open_location(write_table(tmp_path / "a.parquet", image=[b"1", None], cls=[0, 1]), "train")
    assert [source.read(index) for index in range(2)] == [b"1", b""]


def test_files_with_other_class_names_are_refused(imagenet: Path, tmp_path: Path) -> None:
    first, second = (write_parquet(imagenet, tmp_path / str(n), list(SYNSETS[::step])) for n, step in ((0, 1), (1, -1)))
    for number, folder in enumerate((first, second)):
        (folder / "data/train-00000-of-00002.parquet").rename(tmp_path / f"train-{number}.parquet")
    assert error_of(tmp_path / "train-*.parquet", "train").code == "parquet-label-invalid"


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"text": ["a"]}, "parquet-columns-missing"),
        ({"image": [b"1"]}, "parquet-columns-missing"),
        ({"label": [1]}, "parquet-columns-missing"),
        ({"image": ["a.jpg"], "label": [1]}, "parquet-columns-missing"),
        ({"image": [[1, 2]], "label": [1]}, "parquet-columns-missing"),
        ({"image": [{"path": "a.jpg"}], "label": [1]}, "parquet-columns-missing"),
        ({"image": [b"1"], "label": [2.5]}, "parquet-label-invalid"),
        ({"image": [b"1"], "label": [float("nan")]}, "parquet-label-invalid"),
        ({"image": [b"1", b"2"], "label": ["1", "dog"]}, "parquet-label-invalid"),
        ({"image": [b"1"], "label": [-1]}, "parquet-label-invalid"),
        ({"image": [b"1", b"2"], "label": [0, None]}, "parquet-label-invalid"),
    ],
)
def test_unusable_columns_are_refused(columns: dict[str, list[Any]], code: str, tmp_path: Path) -> None:
    assert error_of(write_table(tmp_path / "a.parquet", **columns), "train").code == code


pyarrow = pytest.importorskip("pyarrow")


def save_dataset(folder: Path, contents: list[tuple[str, bytes]], files: int = 2, **columns: Any) -> Path:
    """Write Arrow files with three rows per record batch."""
    folder.mkdir(parents=True)
    features = {"image": {"_type": "Image"}, "label": {"names": list(SYNSETS), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", image), ("label", pyarrow.int64())], metadata)
    names = [f"data-{number:05}-of-{files:05}.arrow" for number in range(files)]
    for number, name in enumerate(names):
        part = contents[len(contents) * number // files : len(contents) * (number + 1) // files]
        rows = {
            "image": [{"bytes": jpeg, "path": None} for _, jpeg in part],
            "label": [SYNSETS.index(synset) for synset, _ in part],
        }
        table = pyarrow.table({**rows, **columns}, None if columns else schema)
        with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


@pytest.fixture
def dataset_dict(imagenet: Path, tmp_path: Path) -> Path:
    for split, name in (("train", "train"), ("val", "validation")):
        save_dataset(tmp_path / "saved" / name, contents_of_folder(imagenet / split))
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    return tmp_path / "saved"


@pytest.mark.parametrize("split", ["train", "val"])
def test_open_source_of_a_saved_dataset_dict(split: str, imagenet: Path, dataset_dict: Path) -> None:
    source = open_location(dataset_dict, split)
    assert tuple(source.class_names) == SYNSETS
    assert images_of_source(source) == images_of_folder(imagenet / split)
    assert images_of_source(pickle.loads(pickle.dumps(source))) == images_of_folder(imagenet / split)
    folder = dataset_dict / {"train": "train", "val": "validation"}[split]
    assert images_of_source(open_location(folder, split)) == images_of_folder(imagenet / split)
    assert source.name(len(source) - 1).startswith(f"{folder}/data-00001-of-00002.arrow: row ")


def test_write_dataset_reads_a_saved_dataset(imagenet: Path, dataset_dict: Path, write: Write) -> None:
    file: BetonFile = write(dataset_dict, "val", "--num-workers", 2, "--chunk-size", 2)
    assert images_of_beton(file) == images_of_folder(imagenet / "val")


def test_split_that_is_not_saved_is_refused(imagenet: Path, tmp_path: Path) -> None:
    save_dataset(tmp_path / "saved" / "train", contents_of_folder(imagenet / "train"))
    assert error_of(tmp_path / "saved", "val").code == "source-split-not-found"


def test_truncated_arrow_file_is_refused(dataset_dict: Path) -> None:
    path = dataset_dict / "validation" / "data-00001-of-00002.arrow"
    path.write_bytes(path.read_bytes()[:-2000])
    error = error_of(dataset_dict, "val")
    assert error.code == "parquet-invalid"
    assert path.name in str(error)


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"image": ["a.jpg"], "label": [0]}, "parquet-columns-missing"),
        ({"image": [b"1"], "label": [-1]}, "parquet-label-invalid"),
    ],
)
def test_unusable_columns_of_arrow_files_are_refused(columns: dict[str, list[Any]], code: str, tmp_path: Path) -> None:
    assert error_of(save_dataset(tmp_path / "saved", [], 1, **columns), "train").code == code


@pytest.mark.parametrize("state", ["{}", "no json", '{"_data_files": [{"filename": "absent.arrow"}]}'])
def test_invalid_state_is_refused(state: str, dataset_dict: Path) -> None:
    (dataset_dict / "train" / "state.json").write_text(state)
    assert error_of(dataset_dict, "train").code == "parquet-invalid"


def test_saved_dataset_without_rows_is_refused(tmp_path: Path) -> None:
    assert error_of(save_dataset(tmp_path / "saved", [], 1), "train").code == "source-empty"
    assert error_of(save_dataset(tmp_path / "empty", [], 0), "train").code == "source-empty"
