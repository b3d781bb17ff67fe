"""The sidecar: its content, and that a .beton file that does not match it is refused."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebar.beton import BetonError, BetonFile, read_sidecar
from rebar.beton.format import FIELD_DESCRIPTOR, HEADER
from rebar.beton.inspect import describe
from rebar.beton.sidecar import sidecar_path
from rebar.beton.verify import verify
from tests.beton.conftest import flip_bit


def edit(beton: Path, **values: object) -> None:
    content = json.loads(sidecar_path(beton).read_text())
    sidecar_path(beton).write_text(json.dumps({**content, **values}))


def test_sidecar_records_classes_and_policy(beton: BetonFile) -> None:
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


def test_sidecar_contains_no_paths(beton: BetonFile) -> None:
    assert str(beton.path.parent) not in sidecar_path(beton.path).read_text()


def test_sidecar_is_optional(copied: Path) -> None:
    sidecar_path(copied).unlink()
    assert read_sidecar(copied) is None
    file = BetonFile.open(copied)
    assert file.class_names is None
    assert file.page_matches(0) is None


@pytest.mark.parametrize(
    ("key", "value", "code", "message"),
    [
        ("num_samples", 25, "beton-changed", "25 samples, the file has 24"),
        ("bytes", 10**9, "beton-changed", "1,000,000,000 bytes"),
        ("bytes", 1, "sidecar-invalid", "pages outside the file"),
        ("format", "something", "sidecar-invalid", "'format'"),
        ("version", 2, "sidecar-invalid", "version 2"),
        ("class_names", "n00", "sidecar-invalid", "'class_names'"),
        ("class_names", [1, 2, 3], "sidecar-invalid", "'class_names'"),
        ("seed", True, "sidecar-invalid", "'seed'"),
        ("class_names", ["\ud800"], "sidecar-invalid", "'class_names'"),
        ("images", {"max_resolution": math.inf}, "sidecar-invalid", "not valid JSON"),
        ("images", {"max_resolution": {}}, "sidecar-invalid", "'images'"),
        ("num_samples", -1, "sidecar-invalid", "'num_samples'"),
        ("num_samples", 10**30, "sidecar-invalid", "'num_samples'"),
        ("num_samples", 24.0, "sidecar-invalid", "'num_samples'"),
        ("version", [[1]], "sidecar-invalid", "'version'"),
    ],
)
def test_sidecar_that_does_not_match_is_refused(copied: Path, key: str, value: object, code: str, message: str) -> None:
    edit(copied, **{key: value})
    with pytest.raises(BetonError) as raised:
        BetonFile.open(copied)
    assert raised.value.code == code
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 100_000, "9" * 5000, "NaN", '{"format": "rebar-sidecar"}', "\0"]
)
def test_malformed_sidecar_is_refused(copied: Path, text: str) -> None:
    sidecar_path(copied).write_text(text)
    with pytest.raises(BetonError, match=r"copy\.beton\.json") as raised:
        read_sidecar(copied)
    assert raised.value.code == "sidecar-invalid"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([10**30, -1, "\ud800", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("version", "num_samples", "bytes", "seed", "images", "class_names", "rebar_version", "checksums")
CHECKSUM_KEYS = ("algorithm", "page_size", "first_page", "tables", "pages")


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_sidecar_with_any_values_is_read_or_refused_without_other_exceptions(copied: Path, data: st.DataObject) -> None:
    """Every command that reads the file either works or raises BetonError."""
    original = sidecar_path(copied).read_text()
    content = json.loads(original)
    for key in data.draw(st.sets(st.sampled_from(KEYS), max_size=2)):
        content[key] = data.draw(JSON)
    if isinstance(content["checksums"], dict):
        for key in data.draw(st.sets(st.sampled_from(CHECKSUM_KEYS), max_size=2)):
            content["checksums"][key] = data.draw(JSON)
    try:
        sidecar_path(copied).write_text(json.dumps(content))
        file = BetonFile.open(copied)
        assert "\n".join(describe(copied)).encode()
        verify(copied, num_threads=1)
        code = None if file.page_matches(0) is not False else "page"
    except BetonError as error:
        code = error.code
    finally:
        sidecar_path(copied).write_text(original)
    assert code in (None, "sidecar-invalid", "beton-changed", "beton-label-invalid")


class TestChecksums:
    def test_checksums_are_crc32_of_tables_and_pages(self, beton: BetonFile) -> None:
        checksums = json.loads(sidecar_path(beton.path).read_text())["checksums"]
        content = beton.path.read_bytes()
        size, first = checksums["page_size"], checksums["first_page"]
        end = (first + len(checksums["pages"])) * size
        assert checksums["algorithm"] == "crc32"
        assert checksums["tables"] == f"{zlib.crc32(content[: first * size] + content[end:]):08x}"
        assert checksums["pages"] == [
            f"{zlib.crc32(content[at : at + size]):08x}" for at in range(first * size, end, size)
        ]

    @pytest.mark.parametrize("place", ["label", "descriptor", "padding", "size"])
    def test_single_bit_error_in_the_tables_is_refused(self, copied: Path, beton: BetonFile, place: str) -> None:
        """Most of these bits are not detected without the checksum."""
        samples = HEADER.itemsize + 2 * FIELD_DESCRIPTOR.itemsize
        offsets = {"label": samples + 16, "descriptor": 100, "padding": 1 << 20, "size": copied.stat().st_size - 8}
        flip_bit(copied, offsets[place])
        with pytest.raises(BetonError, match=r"checksum in copy\.beton\.json") as raised:
            BetonFile.open(copied)
        assert raised.value.code == "beton-changed"
        sidecar_path(copied).unlink()
        if place != "size":
            assert len(BetonFile.open(copied)) == len(beton)

    def test_checksums_are_optional(self, copied: Path) -> None:
        content = json.loads(sidecar_path(copied).read_text())
        del content["checksums"]
        sidecar_path(copied).write_text(json.dumps(content))
        file = BetonFile.open(copied)
        assert file.class_names is not None
        assert file.checksums is None
        assert file.page_matches(0) is None

    def test_pages_are_compared_on_request_only(self, copied: Path, beton: BetonFile) -> None:
        flip_bit(copied, int(beton.offsets[3]) + 100)
        file = BetonFile.open(copied)
        assert file.page_matches(3) is False
        assert beton.page_matches(3) is True

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("algorithm", "md5"),
            ("tables", 5),
            ("tables", "-0000001"),
            ("pages", None),
            ("pages", ["xyz"]),
            ("page_size", 0),
            ("page_size", 1 << 62),
            ("page_size", math.nan),
            ("page_size", math.inf),
            ("first_page", -1),
            ("first_page", 10**30),
        ],
    )
    def test_malformed_checksums_are_refused(self, copied: Path, key: str, value: object) -> None:
        checksums = json.loads(sidecar_path(copied).read_text())["checksums"]
        edit(copied, checksums={**checksums, key: value})
        with pytest.raises(BetonError) as raised:
            BetonFile.open(copied)
        assert raised.value.code == "sidecar-invalid"

    def test_offset_outside_all_pages_does_not_match(self, beton: BetonFile) -> None:
        assert beton.checksums is not None
        assert not beton.checksums.page_matches(np.zeros(10, np.uint8), 10**12)
