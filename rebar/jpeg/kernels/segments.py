"""Entropy-coded data in bytes: restart segments, and their bits without byte stuffing (ITU-T T.81, B.1.1.5)."""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.kernels.jit import compiled
from rebar.jpeg.kernels.simd import copy_32_bytes, marker_bytes, trailing_zeros
from rebar.jpeg.status import CORRUPT_DATA, OK, TRUNCATED
from rebar.jpeg.workspace import SCRATCH_PADDING

U = np.uint64
_RST0 = 0xD0


@compiled
def find_segments(
    data: NDArray[np.uint8], start: int, end: int, count: int, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[int, int]:
    """``(status, found)``: where the first ``count`` restart segments start and end; ``starts``, ``ends`` int64.

    The restart markers between them must count up modulo 8. Stops early, CORRUPT_DATA or TRUNCATED, at any
    other marker or the end of the bytes; the segments found before that stand.
    """
    base = U(data.ctypes.data)
    found, at = 0, start
    starts[0] = start
    while True:
        while at + 33 <= end:  # one byte more than is looked at: a marker's second byte
            bits = marker_bytes(base + U(at))
            while bits != U(0):
                place = at + np.int64(trailing_zeros(bits))
                bits &= bits - U(1)
                if data[place + 1] != 0:
                    at = place
                    break
            else:
                at += 32
                continue
            break
        else:
            while at + 1 < end and not (data[at] == 0xFF and data[at + 1] != 0):
                at += 1
            if at + 1 >= end:
                return TRUNCATED, found
        ends[found] = at
        while at + 1 < end and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        if at + 1 >= end:
            return TRUNCATED, found
        found += 1
        if found == count:
            return OK, found
        if data[at + 1] != _RST0 + (found - 1) % 8:
            return CORRUPT_DATA, found
        at += 2
        starts[found] = at


@compiled
def remove_stuffing(data: NDArray[np.uint8], start: int, end: int, scratch: NDArray[np.uint8]) -> int:
    """Copy ``data[start:end]`` without the zero behind each 0xFF, zeros behind it; returns the bytes copied.

    ``scratch`` is at least ``end - start + SCRATCH_PADDING`` long.
    """
    source, out = U(data.ctypes.data), U(scratch.ctypes.data)
    at, length = start, 0
    while at + 32 <= end:
        copy_32_bytes(source + U(at), out + U(length))
        bits = marker_bytes(source + U(at))
        if bits == U(0):
            at += 32
            length += 32
        else:
            first = np.int64(trailing_zeros(bits))
            at += first + 2
            length += first + 1
    while at < end:
        byte = data[at]
        scratch[length] = byte
        length += 1
        at += 2 if byte == 0xFF else 1
    scratch[length : length + SCRATCH_PADDING] = 0
    return length
