"""Which JPEGs are stored as they are, and that they are."""

import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from rebar.beton.encode import EncodedImage, ImagePolicy, encode_image
from rebar.jpeg import turbojpeg
from tests.jpeg.images import KINDS, encode, photograph


def store(content: "bytes | np.ndarray", **policy: Any) -> EncodedImage:
    return encode_image(bytes(content), ImagePolicy(**policy), 0)


def check_same(content: "bytes | np.ndarray", stored: EncodedImage) -> None:
    """The same samples to the bit, and the size that the file says."""
    before = turbojpeg.decode_planes(np.frombuffer(bytes(content), np.uint8))
    for plane, expected in zip(turbojpeg.decode_planes(stored.data), before, strict=True):
        np.testing.assert_array_equal(plane, expected)
    assert (stored.height, stored.width) == before[0].shape


def markers(stored: EncodedImage) -> int:
    return sum(stored.data.tobytes().count(bytes([0xFF, 0xD0 + number])) for number in range(8))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_within_the_limits_passes_to_the_bit(kind: str, progressive: bool) -> None:
    for number, (height, width) in enumerate([(375, 500), (33, 47), (1, 1), (500, 21)]):
        jpeg = encode(photograph(height, width, number), kind, 0, 90, optimize=True, progressive=progressive)
        stored = store(jpeg)
        assert stored.passed_through
        check_same(jpeg, stored)
        assert (markers(stored) > 0) == (width * height > 1)
        assert markers(store(jpeg, restart_markers=False)) == 0
        assert ("progressive" in stored.oddities) == progressive
        assert ("grayscale" in stored.oddities) == (kind == "gray")


def test_what_is_too_large_or_too_fine_does_not() -> None:
    image = photograph(300, 400)
    assert not store(encode(image, quality=91)).passed_through
    assert store(encode(image, quality=91), jpeg_quality=91).passed_through
    assert store(encode(image, quality=98), keep_quality=True).passed_through
    assert not store(encode(image, quality=50), max_resolution=399).passed_through
    assert not store(encode(image, quality=98), keep_quality=True, max_resolution=399).passed_through
    assert store(encode(image, quality=50), max_resolution=300, limit_side="short").passed_through
    assert not store(encode(image, quality=50), write_mode="raw").passed_through


@pytest.mark.parametrize("kind", ["4:2:0", "gray"])
def test_what_is_too_fine_is_made_coarser_and_closer_than_encoded_anew(kind: str) -> None:
    """Closer to the original than what decoding and encoding make of it, at about the same size."""
    for seed in range(4):
        jpeg = encode(photograph(200, 301, seed), kind, 0, 97)
        stored = store(jpeg)
        original = turbojpeg.decode_rgb(jpeg)
        anew = cv2.imencode(".jpg", original[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        plain = store(jpeg, restart_markers=False)
        np.testing.assert_array_equal(turbojpeg.decode_rgb(stored.data), turbojpeg.decode_rgb(plain.data))
        ours, theirs = (
            ((turbojpeg.decode_rgb(data).astype(int) - original) ** 2).mean() for data in (stored.data, anew.ravel())
        )
        assert ours <= 1.02 * theirs
        assert plain.data.size < 1.06 * anew.size


def test_other_factors_that_are_too_fine_are_encoded_with_less_chroma() -> None:
    stored = store(encode(photograph(60, 90), "4:4:4", 0, 97))
    assert [plane.shape for plane in turbojpeg.decode_planes(stored.data)] == [(60, 90), (30, 45), (30, 45)]


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def as_jpeg(mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(photograph(60, 80)).convert(mode)
    image.save(buffer, "JPEG", **{"quality": 80, **options})
    return buffer.getvalue()


def test_what_must_be_turned_does_not() -> None:
    upright, turned = as_jpeg(exif=exif(1)), as_jpeg(exif=exif(6))
    assert store(upright).passed_through
    check_same(upright, store(upright))
    stored = store(turned)
    assert not stored.passed_through
    assert stored.oddities == ("turned upright",)
    assert (stored.width, stored.height) == (60, 80)
    upright_pixels = np.rot90(cv2.imdecode(np.frombuffer(as_jpeg(), np.uint8), cv2.IMREAD_COLOR), -1)
    assert np.abs(cv2.imdecode(stored.data, cv2.IMREAD_COLOR).astype(int) - upright_pixels).mean() < 4


@pytest.mark.parametrize("progressive", [False, True])
def test_an_orientation_is_found_behind_other_metadata(progressive: bool) -> None:
    turned = as_jpeg(exif=exif(6), progressive=progressive)
    comment = b"\xff\xfe" + (5002).to_bytes(2, "big") + bytes(5000)
    assert "turned upright" in store(turned[:2] + comment + turned[2:]).oddities


@pytest.mark.parametrize(("mode", "options"), [("CMYK", {}), ("RGB", {"keep_rgb": True})])
def test_other_colours_are_encoded_anew(mode: str, options: dict[str, Any]) -> None:
    content = as_jpeg(mode, **options)
    stored = store(content)
    assert not stored.passed_through
    with Image.open(io.BytesIO(content)) as image:
        bgr = np.array(image.convert("RGB"))[..., ::-1]
    expected = cv2.imdecode(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(cv2.imdecode(stored.data, cv2.IMREAD_COLOR), expected)
    assert stored.oddities == (("CMYK",) if mode == "CMYK" else ())


def test_an_adobe_marker_that_says_ycbcr_passes() -> None:
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"
    plain = as_jpeg()
    content = plain[:2] + adobe + plain[plain.index(b"\xff\xdb") :]  # no JFIF marker, as Photoshop writes
    stored = store(content)
    assert stored.passed_through
    check_same(content, stored)
    assert b"Adobe" not in stored.data.tobytes()


def test_factors_that_the_decoder_does_not_take_are_encoded_anew() -> None:
    jpeg = cv2.imencode(".jpg", photograph(60, 90), [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x411111])[1]
    stored = store(jpeg)
    assert not stored.passed_through
    assert (stored.width, stored.height) == (90, 60)
