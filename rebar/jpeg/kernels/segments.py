"""Find restart segments, and remove or insert their byte stuffing (ITU-T T.81, B.1.1.5)."""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.kernels.jit import compiled
from rebar.jpeg.kernels.simd import (
    copy_32_bytes,
    load_uint8,
    marker_bytes,
    store_big_endian,
    store_uint8,
    trailing_zeros,
)
from rebar.jpeg.status import CORRUPT_DATA, OK, TRUNCATED
from rebar.jpeg.workspace import SCRATCH_PADDING

U = np.uint64
_RST0 = 0xD0


@compiled
def find_segments(
    data: NDArray[np.uint8], start: int, end: int, count: int, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[int, int]:
    """Find the first ``count`` restart segments; return the status and the number found.

    Their starts and ends are stored in ``starts`` and ``ends``, int64. The restart markers between them must count up
    modulo 8. The search stops with CORRUPT_DATA at any other marker and with TRUNCATED at the end of the data; the
    segments found before are valid.
    """
    base = U(data.ctypes.data)
    found, position = 0, start
    starts[0] = start
    while True:
        while position + 33 <= end:  # 32 bytes, and one more for a marker's second byte
            bits = marker_bytes(base + U(position))
            while bits != U(0):
                candidate = position + np.int64(trailing_zeros(bits))
                bits &= bits - U(1)
                if data[candidate + 1] != 0:
                    position = candidate
                    break
            else:
                position += 32
                continue
            break
        else:
            while position + 1 < end and not (data[position] == 0xFF and data[position + 1] != 0):
                position += 1
            if position + 1 >= end:
                return TRUNCATED, found
        ends[found] = position
        while position + 1 < end and data[position + 1] == 0xFF:  # fill bytes
            position += 1
        if position + 1 >= end:
            return TRUNCATED, found
        found += 1
        if found == count:
            return OK, found
        if data[position + 1] != _RST0 + (found - 1) % 8:
            return CORRUPT_DATA, found
        position += 2
        starts[found] = position


@compiled
def remove_stuffing(data: NDArray[np.uint8], start: int, end: int, scratch: NDArray[np.uint8]) -> int:
    """Copy ``data[start:end]`` without the zero byte after each 0xFF; return the number of bytes copied.

    Zeros follow the copy. ``scratch`` is at least ``end - start + SCRATCH_PADDING`` long.
    """
    source, out = U(data.ctypes.data), U(scratch.ctypes.data)
    position, length = start, 0
    while position + 32 <= end:
        copy_32_bytes(source + U(position), out + U(length))
        bits = marker_bytes(source + U(position))
        if bits == U(0):
            position += 32
            length += 32
        else:
            first = np.int64(trailing_zeros(bits))
            position += first + 2
            length += first + 1
    while position < end:
        byte = data[position]
        scratch[length] = byte
        length += 1
        position += 2 if byte == 0xFF else 1
    scratch[length : length + SCRATCH_PADDING] = 0
    return length


@compiled
def add_stuffing(
    written: np.uint64, address: np.uint64, pending: np.uint64, count: np.uint64, out: NDArray[np.uint8], position: int
) -> int:
    """Write a segment to ``out[position:]`` with a zero byte after each 0xFF; return its end, or -1 if it does not fit.

    The segment is at addresses ``written`` to ``address``; ``count`` pending bits follow, padded with ones.
    """
    if count:
        store_big_endian(address, pending | (U(0xFFFFFFFFFFFFFFFF) >> count))
        address += U(1)
    length = np.int64(address - written)
    if position + 2 * length + 64 > out.size:
        return -1
    target, done = U(out.ctypes.data) + U(position), 0
    while done < length:
        copy_32_bytes(written + U(done), target)
        bits = marker_bytes(written + U(done))
        step = min(32, length - done)
        if bits:
            step = min(step, np.int64(trailing_zeros(bits)) + 1)
        target += U(step)
        done += step
        if load_uint8(target - U(1)) == 0xFF:
            store_uint8(target, np.uint8(0))
            target += U(1)
    return np.int64(target - U(out.ctypes.data))
