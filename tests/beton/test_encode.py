"""decode and encode_image: any image file to stored pixels."""

import io
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, features

from rebar.beton import decode as decode_module
from rebar.beton.decode import ImageError, SizeLimit, decode, downscale
from rebar.beton.encode import ImagePolicy, encode_image, restart_interval
from rebar.beton.format import MODE_JPG, MODE_RAW

RGB = np.stack([*np.mgrid[60:180:4, 50:210:4], np.full((30, 40), 99)], axis=-1).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


def as_file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode_rgb(content: bytes) -> np.ndarray:
    return decode(content, SizeLimit(0)).bgr[..., ::-1]


def test_decode_png_is_lossless() -> None:
    assert np.array_equal(decode_rgb(as_file(Image.fromarray(RGB))), RGB)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "PA"])
def test_decode_equals_pillow_for_every_mode(mode: str) -> None:
    base = Image.fromarray(RGB).convert("L" if mode in ("LA", "PA") else "RGB")
    image = base.convert("P").convert(mode) if mode == "PA" else base.convert(mode)
    kind = "TIFF" if mode in ("CMYK", "PA", "LA") else "PNG"
    decoded = decode_rgb(as_file(image, kind))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, np.array(image.convert("RGB")))


def test_decode_cmyk_jpeg() -> None:
    content = as_file(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode_rgb(content).astype(int) - RGB).mean() < 6


def test_decode_drops_transparency() -> None:
    transparent = np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)])
    assert np.array_equal(decode_rgb(as_file(Image.fromarray(transparent))), RGB)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_decode_16_bits_keeps_the_upper_8(kind: str) -> None:
    levels = np.arange(0, 60_000, 50, np.uint16).reshape(30, 40)
    decoded = decode_rgb(as_file(Image.fromarray(levels), kind))
    assert np.array_equal(decoded, np.repeat((levels >> 8).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("image_format", ["TIFF", "PNG", "WEBP", "AVIF", "MPO"])
def test_decode_applies_orientation_once_in_every_format(image_format: str, orientation: int) -> None:
    if image_format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream, lossless = io.BytesIO(), image_format in ("TIFF", "PNG", "WEBP")
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "MPO": {"quality": 100, "subsampling": 0}}
    Image.fromarray(RGB).save(stream, image_format, exif=exif, **options.get(image_format, {}))
    upright = {1: RGB, 3: np.rot90(RGB, 2), 6: np.rot90(RGB, -1), 8: np.rot90(RGB)}[orientation]
    decoded = decode(stream.getvalue(), SizeLimit(None))
    assert decoded.bgr.shape == upright.shape
    assert decoded.size == upright.shape[1::-1]
    assert np.abs(decoded.bgr[..., ::-1].astype(int) - upright).mean() <= (0 if lossless else 6)
    assert ("turned upright" in decoded.irregularities) == (orientation != 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_applies_orientation(orientation: int) -> None:
    upright = {  # orientation -> upright pixels
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: np.rot90(RGB, 2).transpose(1, 0, 2),
        8: np.rot90(RGB),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode_rgb(as_file(Image.fromarray(RGB), exif=exif)), upright[orientation])


def test_decode_ignores_malformed_exif() -> None:
    content = as_file(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    assert decode_rgb(content).shape == RGB.shape


def test_encode_image_of_one_pixel() -> None:
    image = encode_image(as_file(Image.fromarray(RGB[:1, :1])), ImagePolicy(), 0)
    assert (image.width, image.height) == (1, 1)
    assert cv2.imdecode(image.data, cv2.IMREAD_COLOR).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all", "does not recognize"),
        (as_file(Image.fromarray(NOISE), "JPEG")[:-1000], "truncated"),
        (as_file(Image.fromarray(NOISE))[:-1000], "truncated"),
        (as_file(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"), "floating-point"),
    ],
)
def test_decode_error_gives_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_rgb(content)


@pytest.mark.parametrize("policy", [{}, {"jpeg_quality": 50}, {"max_resolution": 60}, {"write_mode": "raw"}])
@pytest.mark.parametrize("progressive", [False, True])
def test_encode_image_refuses_jpegs_without_end_of_image_marker(policy: dict[str, Any], progressive: bool) -> None:
    """The verdict does not depend on how the image would be stored."""
    content = as_file(Image.fromarray(NOISE), "JPEG", quality=80, progressive=progressive)
    assert content.endswith(b"\xff\xd9")
    encode_image(content, ImagePolicy(**policy), 0)
    with pytest.raises(ImageError) as raised:
        encode_image(content[:-2], ImagePolicy(**policy), 0)
    assert raised.value.code == "image-undecodable"


def test_decode_refuses_decompression_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 500)
    with pytest.raises(ImageError, match="40 x 30 pixels, more than 500") as raised:
        decode_rgb(as_file(Image.fromarray(RGB)))
    assert raised.value.code == "image-too-large"


@pytest.mark.parametrize("max_resolution", [None, 0, 37, 100, 255, 256, 500, 1000])
def test_downscale_equals_ffcvs_resizer(max_resolution: int | None) -> None:
    resizer = pytest.importorskip("ffcv.fields.rgb_image").resizer
    rng = np.random.default_rng(0)
    for height, width in [(255, 301), (333, 77), (100, 100), (499, 501)]:
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        size = SizeLimit(max_resolution).apply(width, height)
        assert np.array_equal(downscale(image, size), resizer(image, max_resolution or None))


def test_size_limit_keeps_at_least_one_pixel() -> None:
    assert SizeLimit(500).apply(2000, 3) == (500, 1)
    assert SizeLimit(2, "short").apply(5000, 3) == (3333, 2)


def test_size_limit_of_the_shorter_side() -> None:
    limit = SizeLimit(300, "short")
    assert limit.apply(640, 480) == (400, 300)
    assert limit.apply(480, 640) == (300, 400)
    assert limit.apply(2000, 300) == (2000, 300)
    image = encode_image(as_file(Image.new("RGB", (640, 480))), ImagePolicy(300, "short"), 0)
    assert (image.width, image.height) == (400, 300)


def test_encoded_jpegs_equal_ffcvs() -> None:
    encode_jpeg = pytest.importorskip("ffcv.fields.rgb_image").encode_jpeg
    plain = ImagePolicy(jpeg_quality=83, restart_markers=False)
    stored = encode_image(as_file(Image.fromarray(RGB)), plain, 0)
    assert stored.mode == MODE_JPG
    assert np.array_equal(stored.data, encode_jpeg(RGB, 83))


def test_restart_markers_do_not_change_pixels() -> None:
    content = as_file(Image.fromarray(RGB))
    marked = encode_image(content, ImagePolicy(restart_markers=True), 0).data
    plain = encode_image(content, ImagePolicy(restart_markers=False), 0).data
    assert b"\xff\xd0" in marked.tobytes()
    assert marked.size > plain.size
    assert np.array_equal(cv2.imdecode(marked, cv2.IMREAD_COLOR), cv2.imdecode(plain, cv2.IMREAD_COLOR))


@pytest.mark.parametrize(
    ("width", "interval"),
    [(1, 1), (16, 1), (17, 2), (48, 3), (64, 4), (500, 4), (333, 3), (375, 4), (272, 1), (10_000, 5)],
)
def test_restart_interval_divides_a_row_of_mcus(width: int, interval: int) -> None:
    assert restart_interval(width) == interval
    assert -(-width // 16) % interval == 0


def test_encode_image_raw_stores_the_pixels() -> None:
    stored = encode_image(as_file(Image.fromarray(RGB)), ImagePolicy(write_mode="raw"), 0)
    assert (stored.mode, stored.height, stored.width) == (MODE_RAW, *RGB.shape[:2])
    assert np.array_equal(stored.data.reshape(RGB.shape), RGB)


def test_stores_jpeg_depends_on_seed_and_index() -> None:
    policy = ImagePolicy(write_mode="proportion", compress_probability=0.3, seed=5)
    drawn = [policy.stores_jpeg(index) for index in range(3000)]
    assert drawn == [policy.stores_jpeg(index) for index in range(3000)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.03)
    assert drawn != [replace(policy, seed=6).stores_jpeg(index) for index in range(3000)]


@pytest.mark.parametrize(("probability", "expected"), [(0.0, False), (1.0, True)])
def test_stores_jpeg_with_probability_0_and_1(probability: float, expected: bool) -> None:
    policy = ImagePolicy(write_mode="proportion", compress_probability=probability)
    assert all(policy.stores_jpeg(index) is expected for index in range(100))


def test_encode_image_refuses_sides_beyond_the_format() -> None:
    wide = as_file(Image.new("RGB", (66_000, 1)))
    for write_mode in ("jpg", "raw"):
        with pytest.raises(ImageError, match="66000 x 1 pixels"):
            encode_image(wide, ImagePolicy(max_resolution=0, write_mode=write_mode), 0)
