"""The outcomes of decoding a JPEG: status codes, the parsed header and the exception. Nothing here imports numba."""

from enum import IntEnum
from typing import NamedTuple

from rebar.errors import RebarError


class JpegError(RebarError):
    """A JPEG that cannot be decoded completely; the message is the decoder's, without the file's name."""


class Status(IntEnum):
    """The outcome of decoding or transcoding one image with the compiled kernels.

    Unless the status is OK, the output is undefined. UNSUPPORTED is a valid JPEG of a kind that the kernels do not
    decode, such as progressive, CMYK or 12-bit: decode the full image with
    :func:`rebar.jpeg.turbojpeg.decode_rgb`. WRONG_SIZE is an image, or a crop, of another size than requested. The
    other codes are faults of the file.
    """

    OK = 0
    UNSUPPORTED = 1
    CORRUPT_HEADER = 2
    CORRUPT_DATA = 3
    TRUNCATED = 4
    WRONG_SIZE = 5


# The same as plain integers: numba compiles comparisons with these to constants.
OK = int(Status.OK)
UNSUPPORTED = int(Status.UNSUPPORTED)
CORRUPT_HEADER = int(Status.CORRUPT_HEADER)
CORRUPT_DATA = int(Status.CORRUPT_DATA)
TRUNCATED = int(Status.TRUNCATED)
WRONG_SIZE = int(Status.WRONG_SIZE)


class Header(NamedTuple):
    """The frame and scan parameters of a JPEG.

    ``height`` and ``width`` are in pixels. ``h_samp`` and ``v_samp`` are the luma sampling factors, that is the luma
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
