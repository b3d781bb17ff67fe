"""Folders of Arrow files, with the layout and the file format of ``datasets.save_to_disk``."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from rebar.beton import BetonFile
from tests.sources.conftest import (
    SYNSETS,
    Write,
    contents_of_folder,
    error_of,
    images_of_beton,
    images_of_folder,
    images_of_source,
    open_location,
)

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
