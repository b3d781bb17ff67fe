"""What became of an image that the fast path was asked for.

A JPEG's frame in plain values. Nothing here needs numba.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np


class Status(IntEnum):
    """One an image, from :meth:`rebar.jpeg.crop_decoder.CropDecoder.decode_crops`.

    Everything but OK leaves the image's pixels undefined. UNSUPPORTED is a JPEG that is fine but of a
    kind this decoder does not take (progressive, four components, 12-bit, ...): decode it whole with
    libturbojpeg. The others name what is wrong with the file or the request.
    """

    OK = 0
    UNSUPPORTED = 1
    CORRUPT_HEADER = 2
    CORRUPT_DATA = 3
    TRUNCATED = 4
    WRONG_SIZE = 5


# Plain integers for the kernels.
OK = int(Status.OK)
UNSUPPORTED = int(Status.UNSUPPORTED)
CORRUPT_HEADER = int(Status.CORRUPT_HEADER)
CORRUPT_DATA = int(Status.CORRUPT_DATA)
TRUNCATED = int(Status.TRUNCATED)
WRONG_SIZE = int(Status.WRONG_SIZE)


# The natural (row by row) place of the k-th coefficient in zigzag order (T.81, figure A.6). A wrong stream
# may count beyond 63: those land on the last one.
ZIGZAG = np.full(256, 63, np.uint8)
ZIGZAG[:64] = sorted(range(64), key=lambda i: (i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8))


class Header(NamedTuple):
    """An image's frame: sizes in pixels, ``across`` and ``down`` the luma blocks of a unit (MCU) in each
    direction, the restart interval in units (0: none), and where the entropy-coded data starts."""

    height: int
    width: int
    components: int
    across: int
    down: int
    restart_interval: int
    entropy_start: int
