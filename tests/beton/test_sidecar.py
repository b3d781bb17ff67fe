"""The JSON beside the file."""

import json
from pathlib import Path

import pytest

from rebar.beton import BetonError, BetonFile, read_sidecar
from rebar.beton.sidecar import sidecar_path


def test_it_says_how_the_file_was_made(beton: BetonFile) -> None:
    sidecar = read_sidecar(beton.path)
    assert sidecar is not None
    assert sidecar.class_names == ("n00", "n01", "n02")
    assert sidecar.num_samples == 24
    assert sidecar.bytes == beton.path.stat().st_size
    assert sidecar.images == {
        "max_resolution": 200,
        "limit_side": "long",
        "jpeg_quality": 90,
        "keep_quality": False,
        "write_mode": "jpg",
        "compress_probability": 0.5,
        "restart_markers": True,
    }


def test_it_does_not_say_where(beton: BetonFile) -> None:
    assert str(beton.path.parent) not in sidecar_path(beton.path).read_text()


def test_there_may_be_none(copied: Path) -> None:
    sidecar_path(copied).unlink()
    assert read_sidecar(copied) is None
    assert BetonFile.open(copied).class_names is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_samples", 25, "25 samples, the file has 24"),
        ("bytes", 1, "mixed up with another file .*speaks of 1 bytes"),
        ("format", "something", "not a sidecar"),
        ("version", 2, "sidecar version 2"),
        ("class_names", "n00", "'class_names' is missing or not of type list"),
        ("class_names", [1, 2, 3], "text only"),
        ("seed", True, "'seed'"),
    ],
)
def test_one_that_does_not_belong_is_refused(copied: Path, key: str, value: object, message: str) -> None:
    content = json.loads(sidecar_path(copied).read_text())
    sidecar_path(copied).write_text(json.dumps({**content, key: value}))
    with pytest.raises(BetonError, match=message):
        BetonFile.open(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"format": "rebar-sidecar"}', "\0"])
def test_broken_ones_are_refused(copied: Path, text: str) -> None:
    sidecar_path(copied).write_text(text)
    with pytest.raises(BetonError, match=r"copy\.beton\.json: .*delete it"):
        read_sidecar(copied)
