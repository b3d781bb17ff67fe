"""JPEGs that are stored as they are: not decoded, but with restart markers and the standard Huffman tables put in.

The pixels are those of the original to the bit. What cannot be stored like this is decoded and encoded anew.
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rebar.beton.decoding import lies_upright
from rebar.beton.sizes import SizeLimit
from rebar.jpeg.sequential import make_sequential
from rebar.jpeg.standard_tables import quantisation_at
from rebar.jpeg.status import OK, UNSUPPORTED
from rebar.jpeg.turbojpeg import JpegError

if TYPE_CHECKING:
    from rebar.jpeg.headers import Header
    from rebar.jpeg.transcode import Transcoder

_JPEG = b"\xff\xd8\xff"
_FINER = 1e-9  # relative: what rounding may make of equal means
_MARKER_PIXELS = 64  # from one restart marker to the next, about


@dataclass(frozen=True)
class Limits:
    """What a JPEG must keep to for being passed through."""

    size: SizeLimit
    quality: int | None
    """Its quantisation is no finer than libjpeg's at this quality; None: whatever it is."""
    restart_markers: bool


@dataclass(frozen=True)
class Passed:
    """A JPEG as it is stored."""

    data: np.ndarray
    """uint8 ``[n]``"""
    width: int
    height: int
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
    if status != OK or not _within(transcoder, header, limits) or not lies_upright(content):
        return None
    interval = restart_interval(header.width, 8 * header.across) if limits.restart_markers else 0
    status, data = transcoder.write(jpeg, header, interval)
    if status != OK:
        return None
    if header.components == 1:
        oddities += ("grayscale",)
    return Passed(data, header.width, header.height, oddities)


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
def _transcoder() -> "Transcoder":
    """This process's: kernels are loaded when the first JPEG comes, and only where there is one."""
    from rebar.jpeg.transcode import Transcoder

    return Transcoder()


def _is_progressive(content: bytes) -> bool:
    """Whether a marker of a progressive frame is in it; a wrong guess costs time only."""
    return b"\xff\xc2" in content


def _within(transcoder: "Transcoder", header: "Header", limits: Limits) -> bool:
    if limits.size.apply(header.width, header.height) != (header.width, header.height):
        return False
    if limits.quality is None:
        return True
    for component in range(header.components):
        finest = quantisation_at(limits.quality)[min(component, 1)].mean()
        if transcoder.quantisation(component).mean() < finest * (1 - _FINER):
            return False
    return True
