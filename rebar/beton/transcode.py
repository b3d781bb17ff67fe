"""Lossless transcoding and requantization of JPEGs, without decoding them to pixels.

Restart markers and the standard Huffman tables are inserted. A JPEG within the quality limit keeps its pixels bit for
bit. A JPEG of higher quality is requantized, which loses no more than decoding and re-encoding at the same size.
"""

import functools
from dataclasses import dataclass

import numpy as np

from rebar.beton.decode import SizeLimit, is_upright
from rebar.jpeg.standard_tables import quantization_tables
from rebar.jpeg.status import OK, UNSUPPORTED
from rebar.jpeg.transcoder import Transcoder
from rebar.jpeg.turbojpeg import JpegError, make_sequential

_JPEG_START = b"\xff\xd8\xff"
_PROGRESSIVE_FRAME = b"\xff\xc2"
_MEAN_TOLERANCE = 1e-9  # relative
_MARKER_DISTANCE = 64  # pixels between restart markers, approximately


@dataclass(frozen=True)
class TranscodeOptions:
    """The settings of :func:`transcode_jpeg`."""

    size: SizeLimit
    quality: int | None
    """Quantization tables finer than libjpeg's at this quality are requantized to it; None: never requantize."""
    restart_markers: bool


@dataclass(frozen=True)
class Transcoded:
    """A transcoded JPEG."""

    data: np.ndarray
    """uint8 ``[n]``"""
    width: int
    height: int
    lossless: bool
    """Whether its pixels are bit-identical to the original's."""
    irregularities: tuple[str, ...]


def transcode_jpeg(content: bytes, options: TranscodeOptions) -> Transcoded | None:
    """Transcode a JPEG; return None if it must be decoded and re-encoded instead.

    Returns None for other formats, and for JPEGs that are damaged, exceed the size limit, must be rotated, or use an
    unsupported coding.
    """
    if not content.startswith(_JPEG_START):
        return None
    transcoder, jpeg = _transcoder(), np.frombuffer(content, np.uint8)
    irregularities: tuple[str, ...] = ()
    status, header = transcoder.read_header(jpeg)
    if status == UNSUPPORTED and _PROGRESSIVE_FRAME in content:  # a false positive only costs time
        try:
            jpeg = make_sequential(jpeg)
        except JpegError:
            return None
        irregularities = ("progressive",)
        status, header = transcoder.read_header(jpeg)
    size = header.width, header.height
    metadata_size = len(content) if irregularities else header.entropy_start
    if status != OK or options.size.apply(*size) != size or not is_upright(content, metadata_size):
        return None
    tables = tuple(transcoder.quantization(component).tobytes() for component in range(header.components))
    quality = None if _is_within(tables, options.quality) else options.quality
    if quality is not None and header.components > 1 and (header.h_samp, header.v_samp) != (2, 2):
        return None  # re-encoding subsamples the chroma, requantizing does not
    interval = restart_interval(header.width, 8 * header.h_samp) if options.restart_markers else 0
    status, data = transcoder.write(jpeg, header, interval, quality)
    if status != OK:
        return None
    if header.components == 1:
        irregularities += ("grayscale",)
    return Transcoded(data, *size, quality is None, irregularities)


@functools.lru_cache(maxsize=1024)
def restart_interval(width: int, mcu_width: int = 16) -> int:
    """Return the number of MCUs between restart markers for a JPEG that is ``width`` pixels wide.

    ``mcu_width`` is 16 pixels for horizontally subsampled chroma (4:2:0, OpenCV's default), and 8 otherwise. The
    interval divides the MCUs of a row, so that every row starts a segment, and is as near as possible to 64 pixels:
    shorter segments cost bytes, longer ones make crops decode more pixels that they do not need.
    """
    mcus_per_row = -(-width // mcu_width)
    divisors = (d for d in range(1, mcus_per_row + 1) if mcus_per_row % d == 0)
    return min(divisors, key=lambda divisor: (abs(divisor - _MARKER_DISTANCE // mcu_width), divisor))


@functools.cache
def _transcoder() -> Transcoder:
    """Return the cached transcoder. The kernels are loaded with the first JPEG, so other formats do not need them."""
    return Transcoder()


@functools.lru_cache(maxsize=64)
def _is_within(tables: tuple[bytes, ...], quality: int | None) -> bool:
    """Return whether no quantization table (int16) has a smaller mean than libjpeg's at ``quality``."""
    if quality is None:
        return True
    limits = quantization_tables(quality).mean(axis=1)
    means = [np.frombuffer(table, np.int16).mean() for table in tables]
    return all(mean >= limits[min(component, 1)] * (1 - _MEAN_TOLERANCE) for component, mean in enumerate(means))
