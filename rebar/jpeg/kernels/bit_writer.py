"""Bits to bytes: what a transcoder writes, and the stuffing of its segments (ITU-T T.81, B.1.1.5)."""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.kernels.jit import compiled, inlined
from rebar.jpeg.kernels.simd import (
    copy_32_bytes,
    load_big_endian,
    load_uint8,
    marker_bytes,
    store_big_endian,
    store_uint8,
    trailing_zeros,
)

U = np.uint64
MOST_BITS = 32
"""Put at once."""


@inlined
def put(
    bits: np.uint64, wide: np.uint64, address: np.uint64, pending: np.uint64, count: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Write ``wide`` bits, 1 to 56; fewer than 8 stay pending, at the top: ``(address, pending, count)``."""
    count += wide
    pending |= bits << (U(64) - count)
    store_big_endian(address, pending)
    return address + (count >> U(3)), pending << (count & U(56)), count & U(7)


@inlined
def copy_bits(
    source: np.uint64, start: int, end: int, address: np.uint64, pending: np.uint64, count: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Write the bits from ``start`` to ``end`` behind the address ``source``: ``(address, pending, count)``."""
    while start < end:
        wide = min(end - start, 56)
        bits = (load_big_endian(source + U(start >> 3)) << U(start & 7)) >> U(64 - wide)
        address, pending, count = put(bits, U(wide), address, pending, count)
        start += wide
    return address, pending, count


@compiled
def put_segment(
    written: np.uint64, address: np.uint64, pending: np.uint64, count: np.uint64, out: NDArray[np.uint8], at: int
) -> int:
    """A segment's bytes, the last filled up with ones, to ``out``, with a zero behind each 0xFF.

    Returns the place behind them; -1 where there is no room for them.
    """
    if count:
        store_big_endian(address, pending | (U(0xFFFFFFFFFFFFFFFF) >> count))
        address += U(1)
    length = np.int64(address - written)
    if at + 2 * length + 64 > out.size:
        return -1
    target, done = U(out.ctypes.data) + U(at), 0
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
