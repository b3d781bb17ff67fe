"""A JPEG's frame in plain values. Nothing here needs numba."""

from typing import NamedTuple

import numpy as np

# The natural (row by row) place of the k-th coefficient in zigzag order (T.81, figure A.6). A wrong stream
# may count beyond 63: those land on the last one.
ZIGZAG = np.full(256, 63, np.uint8)
ZIGZAG[:64] = sorted(range(64), key=lambda i: (i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8))


class Header(NamedTuple):
    """A picture's frame: sizes in pixels, ``across`` and ``down`` the luma blocks of a unit (MCU) in each
    direction, the restart interval in units (0: none), and where the entropy-coded data starts."""

    height: int
    width: int
    components: int
    across: int
    down: int
    restart_interval: int
    entropy_start: int
