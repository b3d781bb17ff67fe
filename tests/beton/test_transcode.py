"""JPEGs that are transcoded without being decoded."""

import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from rebar.beton.encode import EncodedImage, ImagePolicy, encode_image
from rebar.jpeg import turbojpeg
from rebar.jpeg.decode import decode_rgb
from tests.jpeg.images import KINDS, encode, photograph


def store(content: "bytes | np.ndarray", **policy: Any) -> EncodedImage:
    return encode_image(bytes(content), ImagePolicy(**policy), 0)


def check_lossless(content: "bytes | np.ndarray", stored: EncodedImage) -> None:
    """Check that the planes are bit-identical and that the recorded size is correct."""
    planes = turbojpeg.decode_planes(np.frombuffer(bytes(content), np.uint8))
    for plane, expected in zip(turbojpeg.decode_planes(stored.data), planes, strict=True):
        np.testing.assert_array_equal(plane, expected)
    assert (stored.height, stored.width) == planes[0].shape


def count_markers(stored: EncodedImage) -> int:
    return sum(stored.data.tobytes().count(bytes([0xFF, 0xD0 + number])) for number in range(8))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_jpegs_within_the_limits_are_lossless(kind: str, progressive: bool) -> None:
    for number, (height, width) in enumerate([(375, 500), (33, 47), (1, 1), (500, 21)]):
        jpeg = encode(photograph(height, width, number), kind, 0, 90, optimize=True, progressive=progressive)
        stored = store(jpeg)
        assert stored.lossless
        check_lossless(jpeg, stored)
        assert (count_markers(stored) > 0) == (width * height > 1)
        assert count_markers(store(jpeg, restart_markers=False)) == 0
        assert ("progressive" in stored.irregularities) == progressive
        assert ("grayscale" in stored.irregularities) == (kind == "gray")


def test_larger_or_finer_jpegs_are_not_lossless() -> None:
    image = photograph(300, 400)
    assert not store(encode(image, quality=91)).lossless
    assert store(encode(image, quality=91), jpeg_quality=91).lossless
    assert store(encode(image, quality=98), keep_quality=True).lossless
    assert not store(encode(image, quality=50), max_resolution=399).lossless
    assert not store(encode(image, quality=98), keep_quality=True, max_resolution=399).lossless
    assert store(encode(image, quality=50), max_resolution=300, limit_side="short").lossless
    assert not store(encode(image, quality=50), write_mode="raw").lossless


@pytest.mark.parametrize("kind", ["4:2:0", "gray"])
def test_requantizing_loses_less_than_re_encoding(kind: str) -> None:
    """At about the same size, the result is closer to the original than after decoding and encoding."""
    for seed in range(4):
        jpeg = encode(photograph(200, 301, seed), kind, 0, 97)
        stored = store(jpeg)
        original = decode_rgb(jpeg)
        reencoded = cv2.imencode(".jpg", original[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        plain = store(jpeg, restart_markers=False)
        np.testing.assert_array_equal(decode_rgb(stored.data), decode_rgb(plain.data))
        error, reencoded_error = (
            ((decode_rgb(data).astype(int) - original) ** 2).mean() for data in (stored.data, reencoded.ravel())
        )
        assert error <= 1.02 * reencoded_error
        assert plain.data.size < 1.06 * reencoded.size


def test_finer_jpegs_with_full_chroma_are_re_encoded_as_420() -> None:
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


def test_jpegs_with_an_orientation_are_rotated() -> None:
    upright, rotated = as_jpeg(exif=exif(1)), as_jpeg(exif=exif(6))
    assert store(upright).lossless
    check_lossless(upright, store(upright))
    stored = store(rotated)
    assert not stored.lossless
    assert stored.irregularities == ("turned upright",)
    assert (stored.width, stored.height) == (60, 80)
    upright_pixels = np.rot90(cv2.imdecode(np.frombuffer(as_jpeg(), np.uint8), cv2.IMREAD_COLOR), -1)
    assert np.abs(cv2.imdecode(stored.data, cv2.IMREAD_COLOR).astype(int) - upright_pixels).mean() < 4


@pytest.mark.parametrize("progressive", [False, True])
def test_orientation_after_other_metadata_is_found(progressive: bool) -> None:
    rotated = as_jpeg(exif=exif(6), progressive=progressive)
    comment = b"\xff\xfe" + (5002).to_bytes(2, "big") + bytes(5000)
    assert "turned upright" in store(rotated[:2] + comment + rotated[2:]).irregularities


@pytest.mark.parametrize(("mode", "options"), [("CMYK", {}), ("RGB", {"keep_rgb": True})])
def test_other_color_spaces_are_re_encoded(mode: str, options: dict[str, Any]) -> None:
    content = as_jpeg(mode, **options)
    stored = store(content)
    assert not stored.lossless
    with Image.open(io.BytesIO(content)) as image:
        bgr = np.array(image.convert("RGB"))[..., ::-1]
    expected = cv2.imdecode(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(cv2.imdecode(stored.data, cv2.IMREAD_COLOR), expected)
    assert stored.irregularities == (("CMYK",) if mode == "CMYK" else ())


def test_adobe_marker_for_ycbcr_is_lossless() -> None:
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"
    plain = as_jpeg()
    content = plain[:2] + adobe + plain[plain.index(b"\xff\xdb") :]  # no JFIF marker, as Photoshop writes
    stored = store(content)
    assert stored.lossless
    check_lossless(content, stored)
    assert b"Adobe" not in stored.data.tobytes()


def test_unsupported_sampling_factors_are_re_encoded() -> None:
    jpeg = cv2.imencode(".jpg", photograph(60, 90), [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x411111])[1]
    stored = store(jpeg)
    assert not stored.lossless
    assert (stored.width, stored.height) == (90, 60)
