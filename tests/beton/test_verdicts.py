"""One image, one verdict: the writer with any policy, ``--verify`` and the loader agree on which JPEGs are complete."""

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rebar.beton.decode import ImageError
from rebar.beton.encode import ImagePolicy, encode_image
from rebar.beton.format import MODE_JPG, BetonError
from rebar.beton.images import decode_image
from rebar.loading.crops import Crops
from rebar.loading.decode import ImageDecoder
from tests.jpeg.images import cmyk, encode, photograph

HEIGHT, WIDTH = 96, 128
POLICIES: dict[str, dict[str, Any]] = {
    "stored as is": {"keep_quality": True},
    "requantized": {"jpeg_quality": 30},
    "downscaled": {"max_resolution": 100},
    "downscaled at a reduced scale": {"max_resolution": 12},
    "raw": {"write_mode": "raw"},
    "without restart markers": {"restart_markers": False},
}
IMAGE = photograph(HEIGHT, WIDTH)
PLAIN = bytes(encode(IMAGE))
MARKED = bytes(encode(IMAGE, interval=2))
PROGRESSIVE = bytes(encode(IMAGE, progressive=True))
GRAY = bytes(encode(IMAGE, "gray"))
FINE = bytes(encode(IMAGE, "4:4:4", quality=98))
CMYK = cmyk(IMAGE)
JPEGS = {"plain": PLAIN, "marked": MARKED, "progressive": PROGRESSIVE, "gray": GRAY, "4:4:4": FINE, "CMYK": CMYK}
COMPLETE = {
    "": lambda jpeg: jpeg,
    " and zeros": lambda jpeg: jpeg + bytes(500),
    " and 0xff": lambda jpeg: jpeg + b"\xff" * 7,
    " and text": lambda jpeg: jpeg + b"more bytes after the end",
    " and half of another": lambda jpeg: jpeg + PLAIN[: len(PLAIN) // 2],
    " and a thumbnail": lambda jpeg: jpeg[:2] + b"\xff\xe5" + struct.pack(">H", len(GRAY) + 2) + GRAY + jpeg[2:],
    " and extraneous bytes in the header": lambda jpeg: jpeg.replace(b"\xff\xdb", b"abc\xff\xdb", 1),
    " and zeros before the scan": lambda jpeg: jpeg.replace(b"\xff\xda", bytes(8) + b"\xff\xda", 1),
    " and an unknown version of JFIF": lambda jpeg: jpeg[:11] + b"\x81" + jpeg[12:],
}
TRUNCATED = {
    " without EOI": lambda jpeg: jpeg[:-2],
    " with half of EOI": lambda jpeg: jpeg[:-1],
    " without EOI, with zeros": lambda jpeg: jpeg[:-2] + bytes(500),
    " without EOI, with 0xff": lambda jpeg: jpeg[:-2] + b"\xff" * 7,
    " without EOI, with text": lambda jpeg: jpeg[:-2] + b"more bytes after the end",
    " cut in the last row": lambda jpeg: jpeg[:-40],
    " cut in the middle": lambda jpeg: jpeg[: len(jpeg) * 2 // 3],
}


class OneStored:
    """One JPEG, as a .beton file of other software may contain it."""

    path = Path("stored.beton")

    def __init__(self, content: bytes, height: int = HEIGHT, width: int = WIDTH) -> None:
        self.data = np.frombuffer(content, np.uint8)
        self.offsets, self.sizes = np.zeros(1, np.uint64), np.array([len(content)], np.uint64)
        self.modes = np.array([MODE_JPG], np.uint8)
        self.heights, self.widths = np.array([height], np.uint16), np.array([width], np.uint16)


def writer_accepts(content: bytes, **policy: Any) -> bool:
    try:
        encode_image(content, ImagePolicy(**policy), 0)
    except ImageError as error:
        if error.code != "image-undecodable":
            raise
        return False
    return True


def verify_accepts(stored: OneStored) -> bool:
    try:
        decode_image(stored, 0)
    except BetonError as error:
        if error.code != "beton-image-corrupt":
            raise
        return False
    return True


def loader_accepts(stored: OneStored, box: tuple[int, int, int, int]) -> bool:
    decoder = ImageDecoder(int(stored.heights[0]), int(stored.widths[0]))
    crops, out = Crops(np.array([box]), np.zeros(1, np.bool_)), np.zeros((1, 32, 32, 3), np.uint8)
    return decoder.decode(stored, np.zeros(1, np.int64), crops, out) == []


def verdicts(content: bytes) -> dict[str, bool]:
    stored = OneStored(content)
    return {
        **{name: writer_accepts(content, **policy) for name, policy in POLICIES.items()},
        "verify": verify_accepts(stored),
        "full crop": loader_accepts(stored, (0, 0, HEIGHT, WIDTH)),
        "crop of the top": loader_accepts(stored, (0, 0, 16, 16)),
    }


@pytest.mark.parametrize("change", COMPLETE)
@pytest.mark.parametrize("kind", JPEGS)
def test_complete_jpeg_is_accepted_everywhere(kind: str, change: str) -> None:
    assert verdicts(COMPLETE[change](JPEGS[kind])) == dict.fromkeys(verdicts(PLAIN), True)


@pytest.mark.parametrize("change", TRUNCATED)
@pytest.mark.parametrize("kind", JPEGS)
def test_truncated_jpeg_is_refused_everywhere(kind: str, change: str) -> None:
    assert verdicts(TRUNCATED[change](JPEGS[kind])) == dict.fromkeys(verdicts(PLAIN), False)


def with_precision(jpeg: bytes, bits: int) -> bytes:
    """Return the JPEG with another frame type, extended sequential, and another number of bits per sample."""
    frame = jpeg.index(b"\xff\xc0")
    return jpeg[: frame + 1] + b"\xc1" + jpeg[frame + 2 : frame + 4] + bytes([bits]) + jpeg[frame + 5 :]


@pytest.mark.parametrize("bits", [2, 12, 16])
@pytest.mark.parametrize("kind", ["plain", "gray", "4:4:4"])
def test_jpeg_with_other_than_8_bits_is_refused_everywhere(kind: str, bits: int) -> None:
    assert set(verdicts(with_precision(JPEGS[kind], bits)).values()) == {False}


@pytest.mark.parametrize("frame", [0xC3, 0xC5, 0xC9, 0xCA, 0xCB])
def test_jpeg_with_a_frame_type_that_does_not_fit_its_data_is_refused_everywhere(frame: int) -> None:
    assert set(verdicts(PLAIN.replace(b"\xff\xc0", bytes([0xFF, frame]), 1)).values()) == {False}


def damaged(jpeg: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Return a JPEG with random damage to its entropy-coded data, and its EOI marker."""
    start = jpeg.index(b"\xff\xda") + 14
    place = int(rng.integers(start, len(jpeg) - 12))
    replaced = {
        "a bit": bytes([jpeg[place] ^ 1 << int(rng.integers(8))]),
        "removed": b"",
        "inserted": jpeg[place : place + 1] + rng.bytes(5),
        "zeros": bytes(8),
    }[kind]
    skipped = 10 if kind == "removed" else len(replaced) if kind == "zeros" else 1
    return jpeg[:place] + replaced + jpeg[place + skipped :]


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_with_a_reserved_marker_after_its_data_is_refused_everywhere(kind: str) -> None:
    jpeg = JPEGS[kind]
    verdict = verdicts(jpeg[:-2] + b"\xff\xf0\x00\x04ab" + jpeg[-2:])
    del verdict["crop of the top"]  # its segments are intact
    assert set(verdict.values()) == {False}


@pytest.mark.parametrize("damage", ["a bit", "removed", "inserted", "zeros"])
@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_with_damaged_data_gets_one_verdict(kind: str, damage: str) -> None:
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(20):
        verdict = verdicts(damaged(JPEGS[kind], damage, rng))
        del verdict["crop of the top"]  # its segments may be intact
        assert len(set(verdict.values())) == 1, verdict
        found |= set(verdict.values())
    assert (
        False in found or kind == "CMYK"
    )  # some bit errors only change the pixels; Pillow decodes CMYK without warnings


@pytest.mark.parametrize("kind", [kind for kind in JPEGS if kind != "CMYK"])
def test_jpeg_with_damaged_data_is_repaired(kind: str) -> None:
    content = JPEGS[kind][: len(JPEGS[kind]) // 2] + JPEGS[kind][-2:]
    for policy in POLICIES.values():
        assert not writer_accepts(content, **policy)
        repaired = encode_image(content, ImagePolicy(**policy), 0, repair=True)
        assert repaired.width * HEIGHT == pytest.approx(repaired.height * WIDTH, rel=0.1)


def test_subsampling_that_libturbojpeg_does_not_support_is_accepted_everywhere() -> None:
    frame = PLAIN.index(b"\xff\xc0")
    sampling = frame + 11  # of the luma
    content = PLAIN[:sampling] + b"\x41" + PLAIN[sampling + 1 :]
    assert len({*verdicts(content).values()}) == 1


@pytest.mark.parametrize("kind", JPEGS)
def test_truncated_jpeg_is_repaired_with_every_policy(kind: str) -> None:
    for policy in POLICIES.values():
        repaired = encode_image(JPEGS[kind][:-2], ImagePolicy(**policy), 0, repair=True)
        complete = encode_image(JPEGS[kind], ImagePolicy(**policy), 0)
        assert (repaired.width, repaired.height) == (complete.width, complete.height)


@pytest.mark.parametrize("kind", ["plain", "marked", "progressive"])
@pytest.mark.parametrize("size", [(65_535, 65_535), (HEIGHT + 1, WIDTH), (0, WIDTH)])
def test_jpeg_whose_header_differs_from_the_table_is_refused_without_memory_for_its_pixels(
    kind: str, size: tuple[int, int]
) -> None:
    stored = OneStored(with_size(JPEGS[kind], *size))
    ImageDecoder(HEIGHT, WIDTH)  # compiles the kernels, if they are not cached
    tracemalloc.start()
    try:
        assert not verify_accepts(stored)
        assert not loader_accepts(stored, (0, 0, 16, 16))
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["plain", "marked", "progressive"])
def test_table_with_a_huge_size_is_refused_without_memory_for_its_pixels(kind: str) -> None:
    stored = OneStored(JPEGS[kind], 65_535, 65_535)
    tracemalloc.start()
    try:
        assert not verify_accepts(stored)
        assert not loader_accepts(stored, (0, 0, 65_535, 65_535))
        assert tracemalloc.get_traced_memory()[1] < 1 << 31
    finally:
        tracemalloc.stop()


def with_size(jpeg: bytes, height: int, width: int) -> bytes:
    """Return the JPEG with another size in its frame header."""
    frame = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2"))
    return jpeg[: frame + 5] + struct.pack(">HH", height, width) + jpeg[frame + 9 :]


@pytest.mark.parametrize("kind", ["plain", "progressive"])
@pytest.mark.parametrize("policy", POLICIES)
def test_writer_refuses_a_small_file_with_a_huge_header(kind: str, policy: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ImageError):
            encode_image(with_size(JPEGS[kind], 65_000, 65_000), ImagePolicy(**POLICIES[policy]), 0)
        assert tracemalloc.get_traced_memory()[1] < 1 << 29  # 65,000 x 65,000 pixels take 12.7 GB
    finally:
        tracemalloc.stop()


SEGMENTS = {
    "profile": b"\xff\xe2\x00\x0eICC_PROFILE\0",
    "Adobe": b"\xff\xee\x00\x07Adobe",
    "JFIF": b"\xff\xe0\x00\x07JFIF\0",
    "Exif": b"\xff\xe1\x00\x0eExif\0\0II*\0\xff\xff",
}


@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_with_unreadable_metadata_is_accepted_everywhere(kind: str, name: str) -> None:
    content = JPEGS[kind][:2] + SEGMENTS[name] + JPEGS[kind][2:]
    assert verdicts(content) == dict.fromkeys(verdicts(PLAIN), True)
    stored = encode_image(content, ImagePolicy(write_mode="raw"), 0)
    np.testing.assert_array_equal(stored.data, encode_image(JPEGS[kind], ImagePolicy(write_mode="raw"), 0).data)
