"""JPEGs that are stored without being decoded, with restart markers and the standard Huffman tables put in.

Where the quality is within the limit, the pixels are those of the original to the bit. Where it is finer, the
coefficients are rounded to the limit's steps: at the same size that is no farther from the original than decoding and
encoding anew. What cannot be stored like this, for its size, its orientation or its kind, is decoded.
"""

import functools
from dataclasses import dataclass

import numpy as np

from rebar.beton.decode import SizeLimit, lies_upright
from rebar.jpeg.standard_tables import quantization_tables
from rebar.jpeg.status import OK, UNSUPPORTED
from rebar.jpeg.transcoder import Transcoder
from rebar.jpeg.turbojpeg import JpegError, make_sequential

_JPEG = b"\xff\xd8\xff"
_FINER = 1e-9  # relative: what rounding may make of equal means
_MARKER_PIXELS = 64  # from one restart marker to the next, about


@dataclass(frozen=True)
class Limits:
    """What a JPEG must keep to for being passed through."""

    size: SizeLimit
    quality: int | None
    """Quantisation that is finer than libjpeg's at this quality is made coarser; None: it stays as it is."""
    restart_markers: bool


@dataclass(frozen=True)
class Passed:
    """A JPEG as it is stored."""

    data: np.ndarray
    """uint8 ``[n]``"""
    width: int
    height: int
    unchanged: bool
    """Whether its pixels are the original's to the bit."""
    oddities: tuple[str, ...]


def pass_through(content: bytes, limits: Limits) -> Passed | None:
    """The JPEG as it is stored; None where it must be decoded and encoded anew."""
    if not content.startswith(_JPEG):
        return None
    transcoder, jpeg = _transcoder(), np.frombuffer(content, np.uint8)
    oddities: tuple[str, ...] = ()
    status, header = transcoder.read_header(jpeg)
    if status == UNSUPPORTED and _is_progressive(content):
        try:
            jpeg = make_sequential(jpeg)
        except JpegError:
            return None
        oddities = ("progressive",)
        status, header = transcoder.read_header(jpeg)
    size = header.width, header.height
    front = len(content) if oddities else header.entropy_start
    if status != OK or limits.size.apply(*size) != size or not lies_upright(content, front):
        return None
    steps = tuple(transcoder.quantization(component).tobytes() for component in range(header.components))
    quality = None if _within(steps, limits.quality) else limits.quality
    if quality is not None and header.components > 1 and (header.h_samp, header.v_samp) != (2, 2):
        return None  # more chroma than what is encoded anew has
    interval = restart_interval(header.width, 8 * header.h_samp) if limits.restart_markers else 0
    status, data = transcoder.write(jpeg, header, interval, quality)
    if status != OK:
        return None
    if header.components == 1:
        oddities += ("grayscale",)
    return Passed(data, *size, quality is None, oddities)


@functools.lru_cache(maxsize=1024)
def restart_interval(width: int, unit_width: int = 16) -> int:
    """Units (MCUs) from one restart marker to the next in a JPEG ``width`` pixels wide.

    ``unit_width`` is 16 pixels where the chroma is halved, as OpenCV does (4:2:0), else 8. The divisor of the units in
    a row nearest to 64 pixels, so that every row begins a segment: shorter segments cost bytes (a marker, padding and
    fresh DC coefficients), longer ones make a crop decode more around it.
    """
    units_in_a_row = -(-width // unit_width)
    divisors = (d for d in range(1, units_in_a_row + 1) if units_in_a_row % d == 0)
    return min(divisors, key=lambda divisor: (abs(divisor - _MARKER_PIXELS // unit_width), divisor))


@functools.cache
def _transcoder() -> Transcoder:
    """This process's: kernels are loaded when the first JPEG comes, and only where there is one."""
    return Transcoder()


def _is_progressive(content: bytes) -> bool:
    """Whether a marker of a progressive frame is in it; a wrong guess costs time only."""
    return b"\xff\xc2" in content


@functools.lru_cache(maxsize=64)
def _within(steps: tuple[bytes, ...], quality: int | None) -> bool:
    """Whether no component's quantisation, int16, is finer, on average, than libjpeg's at ``quality``."""
    if quality is None:
        return True
    finest = quantization_tables(quality).mean(axis=1)
    means = [np.frombuffer(component, np.int16).mean() for component in steps]
    return all(mean >= finest[min(component, 1)] * (1 - _FINER) for component, mean in enumerate(means))
