"""From a picture as found to a picture as stored: decode to RGB, limit the size, encode.

Sizes follow FFCV's ``resizer`` and the JPEGs come from OpenCV with the same settings, so a picture decodes
to the same pixels as from FFCV's own writer; restart markers are put in besides. Unlike there, a picture's
orientation tag is applied, and 16 bits a channel become 8 rather than being clipped.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from rebar.beton.format import MODE_JPG, MODE_RAW
from rebar.errors import RebarError

MAX_SIDE = 65_535
"""Pixels; what the file format's 16 bits hold."""
MAX_JPEG_SIDE = 65_500
"""Pixels; what libjpeg writes."""
MCU_SIDE = 16
"""Pixels; a 4:2:0 JPEG, OpenCV's default, is coded in squares of this size."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # the tag's value -> what makes the picture upright (Exif 2.3, 4.6.4 A)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(RebarError):
    """A picture that cannot be stored; the message is the reason, without the picture's name."""


@dataclass(frozen=True)
class ImagePolicy:
    """How pictures are stored."""

    max_resolution: int | None = 500
    """Pixels of the longer side; larger pictures are shrunk to it. 0 or None: no limit."""
    jpeg_quality: int = 90
    write_mode: Literal["jpg", "raw", "proportion"] = "jpg"
    """``proportion``: JPEG with probability ``compress_probability``, else raw."""
    compress_probability: float = 0.5
    restart_markers: bool = True
    """Whether JPEGs can be entered in the middle, so that a crop is decoded without what lies before it."""
    seed: int = 0

    def stores_jpeg(self, index: int) -> bool:
        """Whether source picture ``index`` becomes a JPEG: a function of the policy and the index alone."""
        if self.write_mode != "proportion":
            return self.write_mode == "jpg"
        generator = np.random.Philox(key=np.array([self.seed % 2**64, index], np.uint64))
        return float(generator.random_raw() >> 11) * 2.0**-53 < self.compress_probability


@dataclass(frozen=True)
class EncodedPicture:
    """A picture as it goes into the file."""

    mode: int
    """MODE_JPG or MODE_RAW."""
    width: int
    height: int
    data: np.ndarray
    """uint8, one-dimensional."""


def encode_picture(content: bytes, policy: ImagePolicy, index: int) -> EncodedPicture:
    """Turn the content of a picture file into what is stored of it.

    ``index`` is the picture's number in its source. Raises PictureError.
    """
    rgb = shrink(decode_rgb(content), policy.max_resolution)
    height, width = rgb.shape[:2]
    as_jpeg = policy.stores_jpeg(index)
    limit = MAX_JPEG_SIDE if as_jpeg else MAX_SIDE
    if max(width, height) > limit:
        raise PictureError(f"is {width} x {height} pixels, but a side may have {limit}; limit the resolution")
    data = _encode_jpeg(rgb, policy) if as_jpeg else rgb.reshape(-1)
    return EncodedPicture(MODE_JPG if as_jpeg else MODE_RAW, width, height, data)


def decode_rgb(content: bytes) -> np.ndarray:
    """Decode a picture file to uint8 RGB, upright, of shape (height, width, 3).

    Transparency is dropped, as torchvision does. Raises PictureError for whatever cannot be decoded whole.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata; what spoils the pixels is an error
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                return np.array(_to_rgb(_upright(image)))
    except PictureError:
        raise
    except UnidentifiedImageError:
        kind = "is empty" if not content else "is of no kind of picture that Pillow knows"
        raise PictureError(f"cannot be decoded: it {kind}") from None
    except Image.DecompressionBombError as error:
        raise PictureError(f"is larger than Pillow allows: {error}") from None
    except Exception as error:  # Pillow's decoders raise nearly anything for broken files
        raise PictureError(f"cannot be decoded: {error or type(error).__name__}") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        method = _UPRIGHT.get(orientation)
    except Exception:  # a broken tag says nothing about the pixels
        method = None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow keeps in 16 or 32
        levels = np.clip(np.asarray(image), 0, 65_535)
        return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise PictureError("has floating-point pixels of unknown range; convert it to 8 bits first")
    return image.convert("RGB")


def shrink(rgb: np.ndarray, max_resolution: int | None) -> np.ndarray:
    """Shrink a picture of shape (height, width, 3) so that no side exceeds ``max_resolution`` pixels.

    0 or None is no limit. The sizes are FFCV's (``ffcv.fields.rgb_image.resizer``), truncated, but no
    side becomes zero.
    """
    height, width = rgb.shape[:2]
    if not max_resolution or max(width, height) <= max_resolution:
        return rgb
    ratio = max_resolution / max(width, height)
    new_size = (max(1, int(ratio * width)), max(1, int(ratio * height)))
    return cv2.resize(rgb, new_size, interpolation=cv2.INTER_AREA)


def restart_interval(width: int) -> int:
    """MCUs from one restart marker to the next in a 4:2:0 JPEG ``width`` pixels wide.

    The divisor of the MCUs in a row nearest to four, so that every row begins a segment: shorter segments
    cost bytes (a marker, padding and fresh DC coefficients), longer ones make a crop decode more around it.
    """
    mcus_in_a_row = -(-width // MCU_SIDE)
    divisors = (d for d in range(1, mcus_in_a_row + 1) if mcus_in_a_row % d == 0)
    return min(divisors, key=lambda divisor: (abs(divisor - 4), divisor))


def _encode_jpeg(rgb: np.ndarray, policy: ImagePolicy) -> np.ndarray:
    settings = [cv2.IMWRITE_JPEG_QUALITY, policy.jpeg_quality]
    if policy.restart_markers:
        settings += [cv2.IMWRITE_JPEG_RST_INTERVAL, restart_interval(rgb.shape[1])]
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), settings)
    if not encoded:
        raise PictureError(f"OpenCV cannot write it as a JPEG of {rgb.shape[1]} x {rgb.shape[0]} pixels")
    return data.reshape(-1)
