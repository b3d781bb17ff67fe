"""A file that is not the one its sidecar was written with is noticed when it is opened; a page when asked."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from rebar.beton import BetonError, BetonFile
from rebar.beton.format import FIELD_DESCRIPTOR, HEADER
from rebar.beton.sidecar import sidecar_path
from tests.beton.conftest import flip_byte


def test_the_sidecar_holds_the_crc32_of_tables_and_pages(beton: BetonFile) -> None:
    said = json.loads(sidecar_path(beton.path).read_text())["checksums"]
    content = beton.path.read_bytes()
    size, first = said["page_size"], said["first_page"]
    end = (first + len(said["pages"])) * size
    assert said["algorithm"] == "crc32"
    assert said["tables"] == f"{zlib.crc32(content[: first * size] + content[end:]):08x}"
    assert said["pages"] == [f"{zlib.crc32(content[at : at + size]):08x}" for at in range(first * size, end, size)]


@pytest.mark.parametrize("place", ["label", "descriptor", "gap", "size"])
def test_one_bit_of_the_tables(copied: Path, beton: BetonFile, place: str) -> None:
    """Where the reader itself would see nothing wrong."""
    samples = HEADER.itemsize + 2 * FIELD_DESCRIPTOR.itemsize
    places = {"label": samples + 16, "descriptor": 100, "gap": 1 << 20, "size": copied.stat().st_size - 8}
    flip_byte(copied, places[place])
    with pytest.raises(BetonError, match=r"copy\.beton: was changed.*checksum in copy\.beton\.json; copy both again"):
        BetonFile.open(copied)
    sidecar_path(copied).unlink()
    if place != "size":
        assert len(BetonFile.open(copied)) == len(beton)


def test_a_file_without_sidecar_and_a_sidecar_without_checksums(copied: Path) -> None:
    content = json.loads(sidecar_path(copied).read_text())
    del content["checksums"]
    sidecar_path(copied).write_text(json.dumps(content))
    file = BetonFile.open(copied)
    assert file.class_names is not None
    assert file.checksums is None
    assert file.page_matches(0) is None
    sidecar_path(copied).unlink()
    assert BetonFile.open(copied).page_matches(0) is None


def test_pages_are_compared_only_when_asked(copied: Path, beton: BetonFile) -> None:
    flip_byte(copied, int(beton.offsets[3]) + 100)
    file = BetonFile.open(copied)
    assert file.page_matches(3) is False
    assert beton.page_matches(3) is True


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("algorithm", "md5", "checksums of the kind 'md5', not crc32"),
        ("tables", 5, "checksums that cannot be read"),
        ("pages", None, "checksums that cannot be read"),
        ("pages", ["xyz"], "has "),
        ("page_size", 0, "checksums that cannot be right"),
    ],
)
def test_checksums_that_are_none(copied: Path, key: str, value: object, message: str) -> None:
    content = json.loads(sidecar_path(copied).read_text())
    content["checksums"][key] = value
    sidecar_path(copied).write_text(json.dumps(content))
    with pytest.raises(BetonError, match=message):
        BetonFile.open(copied)


def test_a_page_of_no_image_matches_nothing(beton: BetonFile) -> None:
    assert beton.checksums is not None
    assert not beton.checksums.page_matches(np.zeros(10, np.uint8), 10**12)
