"""Class names of any content: written, read, verified, drawn and printed."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

import write_dataset
from rebar.beton import BetonFile
from rebar.reporting.console import class_lines
from rebar.reporting.plots import plot_confusion
from rebar.sources.files import BetonSource
from tests.jpeg.images import encode, photograph

NAMES = [
    b"caf\xe9",  # Latin-1
    b"\xff\xfe\x80",
    "na\u00efve \u72ac \U0001f415".encode(),
    b"\x1b[31mred\x07",
    b"line\nbreak\ttab",
    b"$x$ <b>&|`",
    b"-rf",
    b"_under",
    "\u202eright to left".encode(),
    b"L" * 250,
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A beton of one image per class, and a second one of the other split next to it."""
    folder = tmp_path_factory.mktemp("names")
    for split in ("train", "val"):
        for number, name in enumerate(NAMES):
            path = os.path.join(os.fsencode(folder), split.encode(), name)
            os.makedirs(path)
            Path(os.fsdecode(path), "0.jpg").write_bytes(bytes(encode(photograph(20, 30 + number))))
        options = ["--data-dir", str(folder), "--split", split, "--write-path", str(folder), "--num-workers", "1"]
        write_dataset.main(options)
    return folder / "train.beton"


def test_class_names_in_the_sidecar_are_unicode_and_different(written: Path) -> None:
    names = BetonFile.open(written).class_names
    assert names is not None
    assert len(set(names)) == len(NAMES)
    assert "".join(names).encode()
    assert names == BetonFile.open(written.with_name("val.beton")).class_names
    assert {"caf\\xe9", "\x1b[31mred\x07", "line\nbreak\ttab"} < set(names)
    assert list(BetonSource(written).class_names) == list(names)


def test_class_names_are_printed_without_control_characters(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset.main(["--verify", str(written)])
    write_dataset.main(["--info", str(written), "--out", str(tmp_path / "a.png")])
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.splitlines())
    assert "red\\x07" in printed
    assert cv2.imread(str(tmp_path / "a.png")) is not None


def test_very_long_class_names_are_shortened_where_they_are_shown(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "long.beton"
    copy.write_bytes(written.read_bytes())
    content = json.loads(Path(f"{written}.json").read_text())
    content["class_names"][0] = "M" * 3000
    Path(f"{copy}.json").write_text(json.dumps(content))
    write_dataset.main(["--verify", str(copy)])
    write_dataset.main(["--info", str(copy)])
    assert max(map(len, capsys.readouterr().out.splitlines())) < 1000


def test_confusions_of_any_class_names_are_printed_and_drawn(tmp_path: Path) -> None:
    names = [os.fsdecode(name) for name in NAMES] + ["M" * 3000]
    confusion = np.ones((len(names), len(names)), np.int64)
    lines = class_lines(confusion, names)
    assert all(line.isprintable() and len(line) < 200 for line in lines)
    with_dollar = tmp_path / "$conf_1$.png"
    plot_confusion(confusion, names, with_dollar)
    image = cv2.imread(str(with_dollar))
    assert image is not None
    assert max(image.shape) < 2000
