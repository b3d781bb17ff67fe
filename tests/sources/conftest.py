"""A small ImageNet, every image of its own colour, and ways to write a .beton of it and look into it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from rebar.beton import BetonFile

ROOT = Path(__file__).parents[2]
SYNSETS = ("n01440764", "n02119789", "n03000684")
TRAIN, VAL = 5, 3
FEATURE_NAMES = list(SYNSETS)
"""What Hugging Face's metadata calls the classes."""

Contents = list[tuple[str, bytes]]


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ of three synsets, five and three JPEGs each; the names of val are ILSVRC's, in a mixed order."""
    root = tmp_path_factory.mktemp("imagenet")
    colour = 0
    for split, count in (("train", TRAIN), ("val", VAL)):
        for number in range(count * len(SYNSETS)):
            synset = SYNSETS[number % len(SYNSETS)]
            name = f"{synset}_{number}" if split == "train" else f"ILSVRC2012_val_{number + 1:08}"
            (root / split / synset).mkdir(parents=True, exist_ok=True)
            image = np.full((20 + number, 30, 3), 10 * colour, np.uint8)
            assert cv2.imwrite(str(root / split / synset / f"{name}.JPEG"), image)
            colour += 1
    return root


def contents_of_folder(folder: Path) -> Contents:
    """(class, JPEG) of every image in class folders, in their order."""
    return [(path.parent.name, path.read_bytes()) for path in sorted(folder.glob("*/*.JPEG"))]


def images_of_folder(folder: Path) -> list[tuple[str, bytes]]:
    """(class, pixels) of every image in class folders, in their order."""
    return [(name, pixels(np.frombuffer(content, np.uint8))) for name, content in contents_of_folder(folder)]


def pixels(content: np.ndarray) -> bytes:
    return cv2.cvtColor(cv2.imdecode(content, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).tobytes()


def images_of_file(file: BetonFile) -> list[tuple[str, bytes]]:
    """(class, pixels) of every sample, in the order of the file, which is of raw pixels."""
    assert file.class_names is not None
    return [(file.class_names[file.labels[i]], file.image_bytes(i).tobytes()) for i in range(len(file))]


def run(*arguments: object, **environment: object) -> "subprocess.CompletedProcess[str]":
    """write_dataset.py as a user runs it."""
    return subprocess.run(
        [sys.executable, str(ROOT / "write_dataset.py"), *map(str, arguments)],
        env={**os.environ, **{key: str(value) for key, value in environment.items()}},
        capture_output=True,
        text=True,
        timeout=120,
    )


Write = Callable[..., BetonFile]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of raw pixels, so that they can be compared, and open it."""

    def write(where: object, split: str, *options: object, **environment: object) -> BetonFile:
        target = tmp_path / "written" / f"{split}.beton"
        target.parent.mkdir(exist_ok=True)
        raw = ("--write-mode", "raw", "--max-resolution", 0, "--num-workers", 1, "--overwrite")
        done = run("--split", split, "--data-dir", where, "--write-path", target, *raw, *options, **environment)
        assert done.returncode == 0, done.stderr
        return BetonFile.open(target)

    return write


def refusal(where: object, split: str, target: Path, *options: object, **environment: object) -> str:
    """What a run that must fail says, without a traceback and without leaving a file."""
    done = run("--split", split, "--data-dir", where, "--write-path", target, *options, **environment)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    assert not target.is_file()
    return done.stderr[done.stderr.index("error: ") :]


def write_parquet(imagenet: Path, root: Path) -> Path:
    """Parquet files as Hugging Face stores them: two a split in data/, two rows a row group."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (root / "data").mkdir(parents=True)
    feature = {"image": {"_type": "Image"}, "label": {"names": FEATURE_NAMES, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
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
