"""How large an image may be, and what a larger one is shrunk to.

JPEGs decoded and shrunk in one go, by the kernels that training decodes with.

Their planes are resized before they become RGB, by averaging areas as FFCV's writer does on the decoded image: the
two differ by a quarter of a grey level on average.

Any image file to upright 8-bit pixels, with what was odd about it.

libjpeg-turbo decodes plain JPEGs; Pillow knows everything else, and has the last word on what cannot be decoded.
"""

import functools
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from rebar.errors import RebarError
from rebar.jpeg.turbojpeg import JpegError, decode_bgr

if TYPE_CHECKING:
    from rebar.jpeg.crop_decoder import CropDecoder

Side = Literal["long", "short"]


@dataclass(frozen=True)
class SizeLimit:
    """At most ``pixels`` for the longer or the shorter side; 0 or None: no limit."""

    pixels: int | None
    side: Side = "long"

    def apply(self, width: int, height: int) -> tuple[int, int]:
        """The width and height that an image of this size gets.

        FFCV's own (``ffcv.fields.rgb_image.resizer``), truncated, but no side becomes zero.
        """
        measured = max(width, height) if self.side == "long" else min(width, height)
        if not self.pixels or measured <= self.pixels:
            return width, height
        ratio = self.pixels / measured
        return max(1, int(ratio * width)), max(1, int(ratio * height))


def shrink(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (height, width, 3) at another width and height, by averaging areas as FFCV does."""
    if image.shape[1::-1] == size:
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


_MOST_PIXELS = 1 << 24  # the kernels' memory for larger images would be kept for ever
_STEP = 1024  # pixels by which the largest height and width grow


def decode_shrunk(content: bytes, size: tuple[int, int], wanted: tuple[int, int]) -> np.ndarray | None:
    """A JPEG of ``size`` (width, height) at the smaller size ``wanted``, BGR uint8 ``[height, width, 3]``.

    None where the kernels do not take it, or find a fault.
    """
    if size[0] * size[1] > _MOST_PIXELS or wanted[0] > size[0] or wanted[1] > size[1]:
        return None
    decoder = _decoder(-(-size[1] // _STEP) * _STEP, -(-size[0] // _STEP) * _STEP)
    out = np.empty((1, wanted[1], wanted[0], 3), np.uint8)
    place, box = np.array([0, len(content)], np.uint64), np.array([[0, 0, size[1], size[0]]])
    jpeg, straight = np.frombuffer(content, np.uint8), np.zeros(1, np.bool_)
    statuses = decoder.decode_crops(jpeg, place[:1], place[1:], box, straight, out)
    return cv2.cvtColor(out[0], cv2.COLOR_RGB2BGR) if int(statuses[0]) == 0 else None


@functools.lru_cache(maxsize=4)
def _decoder(max_height: int, max_width: int) -> "CropDecoder":
    """This process's, for images of up to this size."""
    from rebar.jpeg.crop_decoder import CropDecoder

    return CropDecoder(max_height, max_width)


MAX_PIXELS = 178_956_970
"""Of an image that is decoded in full: what Pillow takes too. A worker needs about 7 bytes for each."""

_ORIENTATION_TAG = 0x0112
_ORIENTATION_HINTS = (b"Exif\0\0", b"tiff:Orientation")
_TURNED = range(2, 9)  # the values that ask for turning (Exif 2.3, 4.6.4 A)
_KINDS = {"L": "grayscale", "1": "grayscale", "LA": "grayscale", "P": "palette", "PA": "palette", "CMYK": "CMYK"}
_AMPLE = 2  # an image is decoded at a reduced size only where that is at least so many times what is wanted
_SHRUNK_MUCH = 4  # ... and only where it is shrunk at least so many times


class ImageError(RebarError):
    """An image that cannot be stored; the message is the reason, without the image's name."""


@dataclass(frozen=True)
class Decoded:
    """Pixels, and what was odd: words such as ``grayscale``, ``CMYK``, ``turned upright``, ``PNG``."""

    bgr: np.ndarray
    """uint8 ``[height, width, 3]``, blue first: as OpenCV has it."""
    size: tuple[int, int]
    """Width and height in pixels of the whole image, upright; ``bgr`` may be a reduced one."""
    oddities: tuple[str, ...]


def decode(content: bytes, limit: SizeLimit, *, repair: bool = False) -> Decoded:
    """Decode an image file. Transparency is dropped, as torchvision does.

    A JPEG larger than ``limit`` allows is decoded to the size it gets, or, where it is several times as large, at a
    reduced size of at least twice that.
    With ``repair``, what there is of an image cut short is taken, the rest is grey or black.
    Raises ImageError for whatever cannot be decoded whole, or needs too much memory.
    """
    try:
        with warnings.catch_warnings(), _quiet_pillow(repair):
            warnings.simplefilter("ignore")  # about odd metadata; what spoils the pixels is an error
            with Image.open(io.BytesIO(content)) as image:
                decoded = _decode_opened(content, image, limit)
        if repair and (decoded.bgr == decoded.bgr[0, 0]).all():
            raise ImageError("nothing of it can be decoded")
        return decoded
    except ImageError:
        raise
    except UnidentifiedImageError:
        kind = "is empty" if not content else "is of no kind of image that Pillow knows"
        raise ImageError(f"cannot be decoded: it {kind}") from None
    except Exception as error:  # Pillow's decoders raise nearly anything for broken files
        raise ImageError(f"cannot be decoded: {error or type(error).__name__}") from None


def lies_upright(content: bytes, front: int) -> bool:
    """Whether a JPEG has no orientation tag that asks for turning it; metadata is in the first ``front`` bytes."""
    if all(content.find(hint, 0, front) < 0 for hint in _ORIENTATION_HINTS):
        return True
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as image:
            warnings.simplefilter("ignore")
            return _orientation(image) not in _TURNED
    except Exception:
        return False


@contextmanager
def _quiet_pillow(repair: bool) -> Iterator[None]:
    """What Pillow keeps for the whole process: large images are ours to judge, cut ones are taken when asked."""
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, repair
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _decode_opened(content: bytes, image: Image.Image, limit: SizeLimit) -> Decoded:
    is_jpeg, orientation = image.format in ("JPEG", "MPO"), _orientation(image)
    progressive = bool(image.info.get("progressive"))
    eighths = _eighths(image.size, limit.apply(*image.size)) if is_jpeg else 8
    _refuse_huge(image.size, eighths, progressive)
    oddities = _oddities(image, is_jpeg, progressive)
    width, height = image.size
    bgr = None
    wanted = limit.apply(*image.size)
    if is_jpeg and image.mode in ("L", "RGB") and eighths == 8 and wanted != image.size:
        bgr = decode_shrunk(content, image.size, wanted)
    if bgr is None and is_jpeg and image.mode in ("L", "RGB"):
        try:
            bgr = decode_bgr(np.frombuffer(content, np.uint8), eighths)
        except JpegError as error:
            oddities += _damage(str(error))
    if bgr is None:
        _refuse_huge(image.size, 8, progressive)
        image.load()
        bgr = _to_bgr(image)
    if orientation in _TURNED:
        oddities += ("turned upright",)
        bgr = np.ascontiguousarray(_turn(bgr, orientation))
        if orientation >= 5:
            width, height = height, width
    return Decoded(bgr, (width, height), oddities)


def _eighths(size: tuple[int, int], wanted: tuple[int, int]) -> int:
    """At how many eighths of its size an image that is shrunk to ``wanted`` may be decoded without harm."""
    if max(size) < _SHRUNK_MUCH * max(wanted):
        return 8
    scales = (max(wanted) * _AMPLE * 8 / max(size), min(wanted) * _AMPLE * 8 / max(1, min(size)))
    return next((eighths for eighths in (1, 2, 4) if eighths >= max(scales)), 8)


def _refuse_huge(size: tuple[int, int], eighths: int, progressive: bool) -> None:
    """A progressive JPEG's coefficients are all held at once, whatever it is decoded to."""
    width, height = size
    pixels = width * height * (1 if progressive else eighths * eighths / 64)
    if pixels > MAX_PIXELS:
        kind = "progressive " if progressive else ""
        raise ImageError(
            f"is a {kind}image of {width:,} x {height:,} pixels, more than {MAX_PIXELS:,}, which would take "
            "too much memory; shrink it first"
        )


def _oddities(image: Image.Image, is_jpeg: bool, progressive: bool) -> tuple[str, ...]:
    found: list[str | None] = [None if is_jpeg else str(image.format), "progressive" if progressive else None]
    found.append("16 bits" if image.mode.startswith("I") else _KINDS.get(image.mode))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        found.append("transparency")
    return tuple(word for word in found if word)


def _damage(message: str) -> tuple[str, ...]:
    """What libjpeg-turbo says where Pillow finds nothing; extra bytes between the markers do no harm."""
    known = "Corrupt JPEG data" in message and "extraneous bytes" not in message
    return ("damaged data",) if known else ()


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a broken tag says nothing about the pixels
        return 1


def _turn(bgr: np.ndarray, orientation: int) -> np.ndarray:
    """As Pillow's transpose does."""
    turned = {
        2: lambda: bgr[:, ::-1],
        3: lambda: bgr[::-1, ::-1],
        4: lambda: bgr[::-1],
        5: lambda: bgr.transpose(1, 0, 2),
        6: lambda: np.rot90(bgr, -1),
        7: lambda: bgr[::-1, ::-1].transpose(1, 0, 2),
        8: lambda: np.rot90(bgr),
    }
    return turned[orientation]()


def _to_bgr(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow keeps in 16 or 32
        levels = np.clip(np.asarray(image), 0, 65_535)
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ImageError("has floating-point pixels of unknown range; convert it to 8 bits first")
    rgb = np.asarray(image.convert("RGB"))
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
