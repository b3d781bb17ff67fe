"""Synthetic photographs, JPEGs of every supported kind, and reference crops from full-image decoding."""

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rebar.jpeg.crop_decoder import CropDecoder, Status
from rebar.jpeg.decode import decode_rgb
from rebar.jpeg.turbojpeg import decode_planes

SAMPLINGS = {
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
}
KINDS = (*SAMPLINGS, "gray")
FACTORS = {"4:2:0": (2, 2), "4:2:2": (2, 1), "4:4:0": (1, 2), "4:4:4": (1, 1), "gray": (1, 1)}  # h_samp, v_samp
Box = tuple[int, int, int, int]


def photograph(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return soft colors, hard-edged circles and noise: uint8 BGR ``[height, width, 3]``."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(6):
        center = (int(rng.integers(width)), int(rng.integers(height)))
        color = tuple(int(level) for level in rng.integers(0, 256, 3))
        cv2.circle(image, center, int(rng.integers(1, max(2, min(height, width) // 4))), color, -1)
    noisy = image + rng.normal(0, rng.uniform(0, 10), image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def encode(
    image: NDArray[np.uint8],
    kind: str = "4:2:0",
    interval: int = 0,
    quality: int = 90,
    optimize: bool = False,
    progressive: bool = False,
) -> NDArray[np.uint8]:
    """Encode a BGR image as JPEG, with a restart marker every ``interval`` MCUs (0: none)."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
    settings += [cv2.IMWRITE_JPEG_OPTIMIZE, int(optimize), cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    if kind == "gray":
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    else:
        settings += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[kind]]
    return cv2.imencode(".jpg", image, settings)[1].ravel()


def cmyk(image: NDArray[np.uint8]) -> bytes:
    """Encode an RGB image as a CMYK JPEG."""
    file = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(file, "JPEG")
    return file.getvalue()


def random_box(rng: np.random.Generator, height: int, width: int) -> Box:
    """Return a random box (top, left, height, width) within an image."""
    high, wide = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    return int(rng.integers(0, height - high + 1)), int(rng.integers(0, width - wide + 1)), high, wide


def crop_full_decode(jpeg: NDArray[np.uint8], box: Box, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode the full image, crop it, and resize to ``size`` (height, width) with cv2 INTER_AREA."""
    top, left, height, width = box
    image = decode_rgb(jpeg)[top : top + height, left : left + width]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA).reshape(*size, 3)


def decode_crop(
    decoder: CropDecoder, jpeg: NDArray[np.uint8], box: Box, size: tuple[int, int], flip: bool = False
) -> tuple[Status, NDArray[np.uint8]]:
    """Decode one crop with a CropDecoder; check that the bytes around the output are not written."""
    guard, guard_bytes = 0xA5, 4096
    memory = np.full(size[0] * size[1] * 3 + 2 * guard_bytes, guard, np.uint8)
    out = memory[guard_bytes:-guard_bytes].reshape(1, *size, 3)
    offsets, sizes = np.zeros(1, np.uint64), np.array([jpeg.size], np.uint64)
    statuses = decoder.decode_crops(jpeg, offsets, sizes, np.array([box], np.int64), np.array([flip]), out)
    assert (memory[:guard_bytes] == guard).all(), "bytes before out were written"
    assert (memory[-guard_bytes:] == guard).all(), "bytes after out were written"
    return Status(int(statuses[0])), out[0]


def upsample(plane: NDArray[np.float32], axis: int, length: int, smooth: bool) -> NDArray[np.float32]:
    """Upsample along one axis as libjpeg does: 3/4 of the nearer and 1/4 of the farther sample, or plain doubling."""
    plane = np.moveaxis(plane, axis, 0)
    before, after = np.concatenate([plane[:1], plane[:-1]]), np.concatenate([plane[1:], plane[-1:]])
    if not smooth:
        before = after = plane
    doubled = np.stack([0.75 * plane + 0.25 * before, 0.75 * plane + 0.25 * after], axis=1)
    return np.moveaxis(doubled.reshape(-1, *plane.shape[1:])[:length], 0, axis)


def crop_in_float(jpeg: NDArray[np.uint8], kind: str, box: Box, size: tuple[int, int]) -> NDArray[np.float32]:
    """Compute a crop in floating point: upsample the planes, resize, convert to RGB and clamp."""
    planes = [plane.astype(np.float32) for plane in decode_planes(jpeg)]
    if kind == "gray":
        planes += [np.full_like(planes[0], 128)] * 2
    height, width = planes[0].shape
    h_samp, v_samp = FACTORS[kind]
    smooth = planes[1].shape[1] > 2 or h_samp == 1
    for c in (1, 2):
        if h_samp == 2:
            planes[c] = upsample(planes[c], 1, width, smooth)
        if v_samp == 2:
            planes[c] = upsample(planes[c], 0, height, smooth)
    top, left, high, wide = box
    pixels = np.stack(planes, axis=-1)[top : top + high, left : left + wide]
    y, cb, cr = np.moveaxis(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA).reshape(*size, 3), -1, 0)
    cb, cr = cb - 128, cr - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    return np.clip(rgb, 0, 255)
