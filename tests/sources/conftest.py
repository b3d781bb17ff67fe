"""A small ImageNet in which every image has its own color, and functions that compare sources with it."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest

from rebar.beton import BetonFile, Source
from rebar.errors import RebarError
from rebar.sources import Request, open_source
from tests.beton.conftest import beton, image_tree  # noqa: F401  fixtures
from tests.conftest import REPOSITORY

SYNSETS = ("n01440764", "n02119789", "n03000684")
TRAIN, VAL = 5, 3

Images = list[tuple[str, bytes]]
"""(class name, pixels) of each image"""


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with three synsets of five and three JPEGs; val has ILSVRC's file names, not sorted by class."""
    root = tmp_path_factory.mktemp("imagenet")
    color = 0
    for split, count in (("train", TRAIN), ("val", VAL)):
        for number in range(count * len(SYNSETS)):
            synset = SYNSETS[number % len(SYNSETS)]
            name = f"{synset}_{number}" if split == "train" else f"ILSVRC2012_val_{number + 1:08}"
            (root / split / synset).mkdir(parents=True, exist_ok=True)
            image = np.full((20 + number, 30, 3), 10 * color, np.uint8)
            assert cv2.imwrite(str(root / split / synset / f"{name}.JPEG"), image)
            color += 1
    return root


def contents_of_folder(folder: Path) -> Images:
    """Return (class name, file content) of the images in class folders, in order."""
    return [(path.parent.name, path.read_bytes()) for path in sorted(folder.glob("*/*.JPEG"))]


def val_images(imagenet: Path) -> list[tuple[str, str, bytes]]:
    """Return (file name, synset, content) of the validation images, sorted by file name."""
    paths = sorted((imagenet / "val").glob("*/*"), key=lambda path: path.name)
    return [(path.name, path.parent.name, path.read_bytes()) for path in paths]


def pixels(content: bytes) -> bytes:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).tobytes()


def images_of_folder(folder: Path) -> Images:
    return [(name, pixels(content)) for name, content in contents_of_folder(folder)]


def images_of_source(source: Source) -> Images:
    return [(source.class_names[source.label(i)], pixels(source.read(i))) for i in range(len(source))]


def images_of_beton(file: BetonFile) -> Images:
    """Return the images of a file of raw pixels, in file order."""
    assert file.class_names is not None
    return [(file.class_names[file.labels[i]], file.image_bytes(i).tobytes()) for i in range(len(file))]


def open_location(location: object, split: str, *, labels: object = "", kind: str = "auto") -> Source:
    return open_source(Request(str(location), split, str(labels)), kind)[1]  # type: ignore[arg-type]


def error_of(location: object, split: str, *, labels: object = "", kind: str = "auto") -> RebarError:
    """Return the error raised when a source is opened."""
    with pytest.raises(RebarError) as raised:
        open_location(location, split, labels=labels, kind=kind)
    return raised.value


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, BytesIO(content))


def run_writer(*arguments: object, **environment: object) -> "subprocess.CompletedProcess[str]":
    """Run write_dataset.py in a process with its own environment variables."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "write_dataset.py"), *map(str, arguments)],
        env={**os.environ, **{key: str(value) for key, value in environment.items()}},
        capture_output=True,
        text=True,
        timeout=120,
    )


Write = Callable[..., BetonFile]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a location to a file of raw pixels with write_dataset.py, and opens it."""

    def write(location: object, split: str, *options: object, **environment: object) -> BetonFile:
        target = tmp_path / "written" / f"{split}.beton"
        target.parent.mkdir(exist_ok=True)
        raw = ("--write-mode", "raw", "--max-resolution", 0, "--num-workers", 1, "--overwrite")
        command = ("--split", split, "--data-dir", location, "--write-path", target)
        done = run_writer(*command, *raw, *options, **environment)
        assert done.returncode == 0, done.stderr
        return BetonFile.open(target)

    return write


def write_error(location: object, split: str, target: Path, *options: object, **environment: object) -> str:
    """Return the error message of write_dataset.py, which must fail without a traceback and without a file."""
    done = run_writer("--split", split, "--data-dir", location, "--write-path", target, *options, **environment)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    assert not target.is_file()
    return done.stderr[done.stderr.index("error: ") :]


def write_parquet(imagenet: Path, root: Path, class_names: list[str] | None = None) -> Path:
    """Write Parquet files as Hugging Face does: two per split in data/, with two rows per row group."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (root / "data").mkdir(parents=True)
    label = {"names": class_names or list(SYNSETS), "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", image), ("label", pyarrow.int64())], metadata)
    for split, spelling in (("train", "train"), ("val", "validation")):
        contents = contents_of_folder(imagenet / split)
        half = (len(contents) + 1) // 2
        for number, part in enumerate((contents[:half], contents[half:])):
            rows = {
                "image": [{"bytes": jpeg, "path": "x.JPEG"} for _, jpeg in part],
                "label": [SYNSETS.index(synset) for synset, _ in part],
            }
            path = root / "data" / f"{spelling}-{number:05}-of-00002.parquet"
            parquet.write_table(pyarrow.table(rows, schema), path, row_group_size=2)
    return root
