"""Decode image files of any format to upright 8-bit BGR, downscaled to a size limit.

libjpeg-turbo decodes grayscale and YCbCr JPEGs, Pillow everything else. Pillow also parses the header of every file.
The kernels that training uses downscale JPEGs in YCbCr, before the color conversion.
"""

import functools
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from rebar.beton.metadata import JPEG_START, ROTATED, orientation_of, rotate, without_metadata
from rebar.errors import RebarError
from rebar.jpeg.decode import decode_bgr, read_size
from rebar.jpeg.format import JpegError

if TYPE_CHECKING:
    from rebar.jpeg.crop_decoder import CropDecoder

MAX_PIXELS = 178_956_970
"""Largest image that is decoded at full size; Pillow's own limit. A worker needs about 7 bytes per pixel."""

_MAX_KERNEL_PIXELS = 1 << 24  # limits the cached buffers; libjpeg-turbo decodes larger images
_BUFFER_STEP = 1024  # pixels; the height and width of these buffers are rounded up to a multiple
_KINDS = {"L": "grayscale", "1": "grayscale", "LA": "grayscale", "P": "palette", "PA": "palette", "CMYK": "CMYK"}
_REDUCED_DECODE_FACTOR = 4  # JPEGs that are downscaled by this factor or more are decoded at a reduced scale
_REDUCED_SIZE_MARGIN = 2  # the reduced size is at least this multiple of the final size

Side = Literal["long", "short"]


class ImageError(RebarError):
    """An image that cannot be stored. The message contains only the reason; callers prepend the image's name."""


@dataclass(frozen=True)
class SizeLimit:
    """A limit of ``pixels`` for the longer or the shorter side; 0 or None means no limit."""

    pixels: int | None
    side: Side = "long"

    def apply(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height to which an image of this size is downscaled.

        Rounds down as ``ffcv.fields.rgb_image.resizer`` does, but to at least one pixel.
        """
        measured = max(width, height) if self.side == "long" else min(width, height)
        if not self.pixels or measured <= self.pixels:
            return width, height
        ratio = self.pixels / measured
        return max(1, int(ratio * width)), max(1, int(ratio * height))


def downscale(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image ``[height, width, 3]`` to ``size`` (width, height) by area interpolation, as FFCV does."""
    if image.shape[1::-1] == size:
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


@dataclass(frozen=True)
class Decoded:
    """A decoded image."""

    bgr: np.ndarray
    """uint8 ``[height, width, 3]``, in OpenCV's channel order."""
    size: tuple[int, int]
    """Width and height in pixels of the upright image before downscaling."""
    irregularities: tuple[str, ...]
    """How the file differs from a plain JPEG: ``grayscale``, ``CMYK``, ``turned upright``, ``PNG``, ..."""


def decode(content: bytes, limit: SizeLimit, *, repair: bool = False) -> Decoded:
    """Decode an image file to upright BGR. Transparency is dropped, as torchvision does.

    A JPEG that exceeds ``limit`` is decoded to its final size, or, if it is many times larger, at a reduced scale of
    at least twice the final size. With ``repair``, damaged files are decoded as far as possible, and the missing part
    is gray or black. Raises ImageError for files that cannot be decoded completely, or need too much memory.
    """
    try:
        if not repair:
            check_complete(content)
        with warnings.catch_warnings(), _pillow_settings(repair):
            warnings.simplefilter("ignore")  # about malformed metadata, which does not affect the pixels
            decoded = _decode_without_metadata_errors(content, limit, repair=repair)
        if repair and (decoded.bgr == decoded.bgr[0, 0]).all():
            raise ImageError("nothing of it can be decoded", code="image-undecodable")
        return decoded
    except ImageError:
        raise
    except UnidentifiedImageError:
        reason = "it is empty" if not content else "Pillow does not recognize its format"
        raise ImageError(f"cannot be decoded: {reason}", code="image-undecodable") from None
    except Exception as error:  # Pillow's decoders raise many exception classes for damaged files
        raise ImageError(f"cannot be decoded: {error or type(error).__name__}", code="image-undecodable") from None


def check_complete(content: bytes) -> None:
    """Raise JpegError if the content is a truncated JPEG; see :func:`rebar.jpeg.decode.read_size`."""
    if content.startswith(JPEG_START):
        read_size(np.frombuffer(content, np.uint8))


def _decode_without_metadata_errors(content: bytes, limit: SizeLimit, *, repair: bool) -> Decoded:
    """Decode an image file, without its metadata if Pillow cannot read it: they do not affect the pixels."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return _decode_opened(content, image, limit, repair=repair)
    except ImageError:
        raise
    except Exception as error:
        decoded = _decode_without_metadata(content, limit, repair=repair, error=error)
        return replace(decoded, irregularities=(*decoded.irregularities, "damaged metadata"))


def _decode_without_metadata(content: bytes, limit: SizeLimit, *, repair: bool, error: Exception) -> Decoded:
    """Decode an image whose metadata, or JPEG header, Pillow rejects with ``error``."""
    if (pixels := without_metadata(content)) != content:
        try:
            with Image.open(io.BytesIO(pixels)) as image:
                return _decode_opened(pixels, image, limit, repair=repair)
        except ImageError:
            raise
        except Exception as second:
            error = second
    if repair or not content.startswith(JPEG_START):
        raise error
    jpeg = np.frombuffer(content, np.uint8)  # libjpeg may accept the header
    height, width = read_size(jpeg)
    _check_memory((width, height), 8, progressive=True)
    return Decoded(decode_bgr(jpeg), (width, height), ())


def decode_downscaled(content: bytes, size: tuple[int, int], final_size: tuple[int, int]) -> np.ndarray | None:
    """Decode a JPEG of ``size`` to ``final_size`` (width, height) with the kernels; BGR uint8 ``[height, width, 3]``.

    Returns None if the kernels do not support the JPEG or find an error. The planes are resized before the color
    conversion; the result differs from FFCV's by 0.25 gray levels on average.
    """
    if size[0] * size[1] > _MAX_KERNEL_PIXELS or final_size[0] > size[0] or final_size[1] > size[1]:
        return None
    decoder = _crop_decoder(-(-size[1] // _BUFFER_STEP) * _BUFFER_STEP, -(-size[0] // _BUFFER_STEP) * _BUFFER_STEP)
    out = np.empty((1, final_size[1], final_size[0], 3), np.uint8)
    bounds, crop = np.array([0, len(content)], np.uint64), np.array([[0, 0, size[1], size[0]]])
    jpeg, flip = np.frombuffer(content, np.uint8), np.zeros(1, np.bool_)
    statuses = decoder.decode_crops(jpeg, bounds[:1], bounds[1:], crop, flip, out)
    return cv2.cvtColor(out[0], cv2.COLOR_RGB2BGR) if int(statuses[0]) == 0 else None


@functools.lru_cache(maxsize=4)
def _crop_decoder(max_height: int, max_width: int) -> "CropDecoder":
    """Return a cached decoder for images of up to this size."""
    from rebar.jpeg.crop_decoder import CropDecoder

    return CropDecoder(max_height, max_width)


@contextmanager
def _pillow_settings(repair: bool) -> Iterator[None]:
    """Change Pillow's process-wide settings: no pixel limit, and truncated files are accepted with ``repair``."""
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, repair
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _decode_opened(content: bytes, image: Image.Image, limit: SizeLimit, *, repair: bool) -> Decoded:
    is_jpeg, orientation = image.format in ("JPEG", "MPO"), orientation_of(image)
    is_turned = orientation in ROTATED
    progressive = bool(image.info.get("progressive"))
    final_size = limit.apply(*image.size)
    scale_num = _reduced_scale(image.size, final_size) if is_jpeg else 8
    _check_memory(image.size, scale_num, progressive)
    irregularities = _find_irregularities(image, is_jpeg, progressive)
    width, height = image.size
    bgr = None
    if is_jpeg and image.mode in ("L", "RGB") and scale_num == 8 and final_size != image.size:
        bgr = decode_downscaled(content, image.size, final_size)
    if bgr is None and is_jpeg and image.mode in ("L", "RGB"):
        try:
            bgr = decode_bgr(np.frombuffer(content, np.uint8), scale_num)
        except JpegError as error:
            if not repair and error.code == "jpeg-corrupt":
                raise
    if bgr is None:
        _check_memory(image.size, 8, progressive)
        image.load()
        # Pillow's TIFF plugin rotates the pixels itself and removes the tag. Other formats keep the tag.
        orientation = orientation_of(image)
        width, height = image.size
        bgr = _to_bgr(image)
    if is_turned or orientation in ROTATED:
        irregularities += ("turned upright",)
    if orientation in ROTATED:
        bgr = np.ascontiguousarray(rotate(bgr, orientation))
        if orientation >= 5:
            width, height = height, width
    return Decoded(bgr, (width, height), irregularities)


def _reduced_scale(size: tuple[int, int], final_size: tuple[int, int]) -> int:
    """Return the scale, as a numerator over 8, at which a JPEG can be decoded before it is downscaled."""
    if max(size) < _REDUCED_DECODE_FACTOR * max(final_size):
        return 8
    scales = (
        max(final_size) * _REDUCED_SIZE_MARGIN * 8 / max(size),
        min(final_size) * _REDUCED_SIZE_MARGIN * 8 / max(1, min(size)),
    )
    return next((scale_num for scale_num in (1, 2, 4) if scale_num >= max(scales)), 8)


def _check_memory(size: tuple[int, int], scale_num: int, progressive: bool) -> None:
    """Raise ImageError if decoding takes too much memory.

    libjpeg keeps all coefficients of a progressive JPEG in memory, even when it decodes at a reduced scale.
    """
    width, height = size
    pixels = width * height * (1 if progressive else scale_num * scale_num / 64)
    if pixels > MAX_PIXELS:
        kind = "progressive " if progressive else ""
        raise ImageError(
            f"is a {kind}image of {width:,} x {height:,} pixels, more than {MAX_PIXELS:,}, and would need too much "
            "memory. Downscale it first",
            code="image-too-large",
        )


def _find_irregularities(image: Image.Image, is_jpeg: bool, progressive: bool) -> tuple[str, ...]:
    found: list[str | None] = [None if is_jpeg else str(image.format), "progressive" if progressive else None]
    found.append("16 bits" if image.mode.startswith("I") else _KINDS.get(image.mode))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        found.append("transparency")
    return tuple(kind for kind in found if kind)


def _to_bgr(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits per pixel, which Pillow stores in 16 or 32
        levels = np.clip(np.asarray(image), 0, 65_535)
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ImageError(
            "has floating-point pixels of unknown range. Convert it to 8 bits first", code="image-undecodable"
        )
    rgb = np.asarray(image.convert("RGB"))
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
