"""The results of parsing and decoding a JPEG: status codes, header and exception. This module does not import numba."""

from enum import IntEnum
from typing import NamedTuple

from rebar.errors import RebarError


class JpegError(RebarError):
    """A JPEG that cannot be decoded completely. The message comes from the decoder and does not name the file."""


class Status(IntEnum):
    """The outcome of decoding or transcoding one image with the compiled kernels.

    Unless the status is OK, the output is undefined. UNSUPPORTED is a valid JPEG of a kind that the kernels do not
    decode, such as progressive, CMYK or 12-bit: decode the full image with
    :func:`rebar.jpeg.turbojpeg.decode_rgb`. WRONG_SIZE is an unexpected image size, or a crop outside the image.
    The other codes are defects of the file.
    """

    OK = 0
    UNSUPPORTED = 1
    CORRUPT_HEADER = 2
    CORRUPT_DATA = 3
    TRUNCATED = 4
    WRONG_SIZE = 5


# Plain integers, which numba compiles to constants.
OK = int(Status.OK)
UNSUPPORTED = int(Status.UNSUPPORTED)
CORRUPT_HEADER = int(Status.CORRUPT_HEADER)
CORRUPT_DATA = int(Status.CORRUPT_DATA)
TRUNCATED = int(Status.TRUNCATED)
WRONG_SIZE = int(Status.WRONG_SIZE)


class Header(NamedTuple):
    """The frame and scan parameters of a JPEG.

    ``height`` and ``width`` are in pixels. ``h_samp`` and ``v_samp`` are the luma sampling factors: the number of luma
    blocks of an MCU in each direction. ``restart_interval`` is in MCUs, 0 for none. ``entropy_start`` is the byte
    offset of the entropy-coded data.
    """

    height: int
    width: int
    components: int
    h_samp: int
    v_samp: int
    restart_interval: int
    entropy_start: int
