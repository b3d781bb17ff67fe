"""Decode Huffman codes to DCT coefficients (ITU-T T.81, F.2.2).

A lane reads one segment. Its next bits are at the top of a 64-bit buffer that is refilled without a branch. The
position of a symbol depends on the symbol before it, so two lanes are decoded in one loop for instruction-level
parallelism. Every symbol advances within its block, so the work is bounded even for corrupt data. The pointer is
checked before each chunk of blocks, and the padding after a segment's bits covers the maximum that a chunk can read.
"""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.format import ZIGZAG
from rebar.jpeg.kernel_arguments import SHORT_BITS
from rebar.jpeg.kernels.huffman import END_OF_BLOCK, LONG, SLOT_SHIFT
from rebar.jpeg.kernels.jit import (
    compiled,
    load_big_endian,
    load_uint8,
    load_uint16,
    load_uint32,
    store_int16,
    store_uint8,
)

U = np.uint64
# Fields of a lane's state, uint64. BLOCK is the current block of COUNT, K the index of the next coefficient.
POINTER, BUFFER, AVAILABLE, LIMIT, FIRST, LENGTH, ERROR, BLOCK, K, COUNT = range(10)
# The last coefficient's index is at most 63, or END_OF_BLOCK and more. This bit is set if a run ended beyond 63.
_OVERRUN, _OVERREAD = 64, 256
_ZIGZAG_BYTES = np.concatenate([ZIGZAG[:1], ZIGZAG])  # by the index of the next coefficient


@compiled
def start_lane(lane: NDArray[np.uint64], address: np.uint64, length: int) -> None:
    """Start reading ``length`` bytes at ``address``, followed by ``read_ahead_bytes`` of a chunk's blocks."""
    lane[POINTER] = lane[FIRST] = address
    lane[LENGTH] = U(length)
    lane[LIMIT] = address + U(length + 8)
    lane[BUFFER] = lane[AVAILABLE] = lane[ERROR] = U(0)


@compiled
def start_chunk(lane: NDArray[np.uint64], count: int) -> None:
    """Start a chunk of ``count`` blocks, which are decoded to the start of the lane's coefficients.

    A lane that has read past its segment gets its error flag set and restarts, so that it stays within bounds.
    """
    lane[BLOCK] = lane[K] = U(0)
    lane[COUNT] = U(count)
    if lane[POINTER] > lane[LIMIT]:
        lane[POINTER] = lane[FIRST]
        lane[ERROR] |= U(_OVERREAD)


@compiled
def bits_left(lane: NDArray[np.uint64]) -> int:
    """Return the number of unread bits of the segment; negative after reading past its end."""
    read = np.int64(lane[POINTER] - lane[FIRST]) * 8 - np.int64(lane[AVAILABLE])
    return np.int64(lane[LENGTH]) * 8 - read


@compiled
def has_error(lane: NDArray[np.uint64]) -> bool:
    """Return whether a code was invalid, a run exceeded its block, or a chunk was read past the segment's end."""
    return (lane[ERROR] & U(_OVERRUN | _OVERREAD)) != U(0)


@compiled
def _refill(pointer: np.uint64, buffer: np.uint64, available: np.uint64) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Fill the buffer to at least 56 bits, enough for two symbols.

    The eight bytes at the pointer are OR-ed in below the remaining bits; the pointer advances by the complete bytes.
    """
    buffer |= load_big_endian(pointer) >> available
    return pointer + ((U(63) - available) >> U(3)), buffer, available | U(56)


@compiled
def _long_symbol(buffer: np.uint64, table: np.uint64, short: np.uint64, long: np.uint64, is_dc: bool) -> np.uint64:
    """Return the entry of a symbol that does not fit the short table, in the short table's format."""
    slot = (table - short) >> U(SLOT_SHIFT)
    entry = U(load_uint16(long + (((slot << U(16)) + (buffer >> U(48))) << U(1))))
    if entry == U(0):
        return U((_OVERRUN + 1) << 8)
    length, run, size = entry >> U(8), (entry >> U(4)) & U(15), entry & U(15)
    if size == U(0):
        advance = U(END_OF_BLOCK) if run != U(15) and not is_dc else run + U(1)
        return (advance << U(8)) | length
    bits = (buffer << length) >> (U(64) - size)
    if bits >> (size - U(1)) == U(0):
        bits -= (U(1) << size) - U(1)
    return ((bits & U(0xFFFF)) << U(16)) | ((run + U(1)) << U(8)) | (length + size)


@compiled
def _short_symbol(buffer: np.uint64, table: np.uint64) -> np.uint64:
    return U(load_uint32(table + ((buffer >> U(64 - SHORT_BITS)) << U(2))))


@compiled
def _begin_block(
    pointer: np.uint64,
    buffer: np.uint64,
    available: np.uint64,
    table: np.uint64,
    short: np.uint64,
    long: np.uint64,
    block: np.uint64,
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Decode the DC coefficient of the block at address ``block``; return ``(pointer, buffer, available, k)``."""
    pointer, buffer, available = _refill(pointer, buffer, available)
    entry = _short_symbol(buffer, table)
    if entry & U(LONG):
        entry = _long_symbol(buffer, table, short, long, True)
    store_int16(block, np.int16(entry >> U(16)))
    return pointer, buffer << (entry & U(63)), available - (entry & U(63)), (entry >> U(8)) & U(255)


@compiled
def _store_coefficient(block: np.uint64, k: np.uint64, zigzag: np.uint64, entry: np.uint64) -> None:
    store_int16(block + (U(load_uint8(zigzag + k)) << U(1)), np.int16(entry >> U(16)))


@compiled
def decode_lane(
    lane: NDArray[np.uint64],
    dc_tables: NDArray[np.uint64],
    ac_tables: NDArray[np.uint64],
    short: np.uint64,
    long: np.uint64,
    coefficients: np.uint64,
    ends: np.uint64,
) -> None:
    """Decode all blocks that the lane expects.

    ``coefficients`` is the address of 64 zeroed int16 per block, in natural order; DC coefficients are stored as
    differences. ``dc_tables`` and ``ac_tables`` uint64 ``[blocks]`` hold the addresses of each block's short tables;
    ``short`` and ``long`` are the addresses of the first slot's tables. ``ends`` is the address of one uint8 per
    block, set to END_OF_BLOCK plus the index of the first coefficient that is not coded, or 64 if the last one is.
    """
    pointer, buffer, available, error, k = lane[POINTER], lane[BUFFER], lane[AVAILABLE], lane[ERROR], lane[K]
    zigzag = U(_ZIGZAG_BYTES.ctypes.data)
    for i in range(lane[BLOCK], lane[COUNT]):
        block, table = coefficients + (U(i) << U(7)), ac_tables[U(i)]
        if k == U(0):
            pointer, buffer, available, k = _begin_block(
                pointer, buffer, available, dc_tables[U(i)], short, long, block
            )
        while k <= U(63):
            pointer, buffer, available = _refill(pointer, buffer, available)
            entry = _short_symbol(buffer, table)
            if entry & U(LONG):
                entry = _long_symbol(buffer, table, short, long, False)
            buffer <<= entry & U(63)
            available -= entry & U(63)
            k += (entry >> U(8)) & U(255)
            _store_coefficient(block, k, zigzag, entry)
            if k > U(63):
                break
            entry = _short_symbol(buffer, table)
            if entry & U(LONG):
                entry = _long_symbol(buffer, table, short, long, False)
            buffer <<= entry & U(63)
            available -= entry & U(63)
            k += (entry >> U(8)) & U(255)
            _store_coefficient(block, k, zigzag, entry)
        error |= k - U(1)
        store_uint8(ends + U(i), np.uint8(k))
        k = U(0)
    lane[POINTER], lane[BUFFER], lane[AVAILABLE], lane[ERROR] = pointer, buffer, available, error
    lane[BLOCK], lane[K] = lane[COUNT], k


@compiled
def decode_lane_pair(
    lanes: NDArray[np.uint64],
    dc_tables: NDArray[np.uint64],
    ac_tables: NDArray[np.uint64],
    short: np.uint64,
    long: np.uint64,
    coefficients0: np.uint64,
    coefficients1: np.uint64,
    ends0: np.uint64,
    ends1: np.uint64,
) -> None:
    """Decode both lanes until one has all its blocks; arguments as for :func:`decode_lane`.

    The other lane stops at any point, possibly within a block.
    """
    pointer0, buffer0, available0, error0 = lanes[0, POINTER], lanes[0, BUFFER], lanes[0, AVAILABLE], lanes[0, ERROR]
    pointer1, buffer1, available1, error1 = lanes[1, POINTER], lanes[1, BUFFER], lanes[1, AVAILABLE], lanes[1, ERROR]
    k0, i0, count0 = lanes[0, K], lanes[0, BLOCK], lanes[0, COUNT]
    k1, i1, count1 = lanes[1, K], lanes[1, BLOCK], lanes[1, COUNT]
    zigzag = U(_ZIGZAG_BYTES.ctypes.data)
    block0, block1 = coefficients0 + (i0 << U(7)), coefficients1 + (i1 << U(7))
    table0, table1 = ac_tables[i0], ac_tables[i1]
    if k0 == U(0):
        pointer0, buffer0, available0, k0 = _begin_block(
            pointer0, buffer0, available0, dc_tables[i0], short, long, block0
        )
    if k1 == U(0):
        pointer1, buffer1, available1, k1 = _begin_block(
            pointer1, buffer1, available1, dc_tables[i1], short, long, block1
        )
    while True:
        while (k0 | k1) <= U(63):
            pointer0, buffer0, available0 = _refill(pointer0, buffer0, available0)
            pointer1, buffer1, available1 = _refill(pointer1, buffer1, available1)
            entry0, entry1 = _short_symbol(buffer0, table0), _short_symbol(buffer1, table1)
            if (entry0 | entry1) & U(LONG):
                if entry0 & U(LONG):
                    entry0 = _long_symbol(buffer0, table0, short, long, False)
                if entry1 & U(LONG):
                    entry1 = _long_symbol(buffer1, table1, short, long, False)
            buffer0 <<= entry0 & U(63)
            buffer1 <<= entry1 & U(63)
            available0 -= entry0 & U(63)
            available1 -= entry1 & U(63)
            k0 += (entry0 >> U(8)) & U(255)
            k1 += (entry1 >> U(8)) & U(255)
            _store_coefficient(block0, k0, zigzag, entry0)
            _store_coefficient(block1, k1, zigzag, entry1)
            if (k0 | k1) > U(63):
                break
            entry0, entry1 = _short_symbol(buffer0, table0), _short_symbol(buffer1, table1)
            if (entry0 | entry1) & U(LONG):
                if entry0 & U(LONG):
                    entry0 = _long_symbol(buffer0, table0, short, long, False)
                if entry1 & U(LONG):
                    entry1 = _long_symbol(buffer1, table1, short, long, False)
            buffer0 <<= entry0 & U(63)
            buffer1 <<= entry1 & U(63)
            available0 -= entry0 & U(63)
            available1 -= entry1 & U(63)
            k0 += (entry0 >> U(8)) & U(255)
            k1 += (entry1 >> U(8)) & U(255)
            _store_coefficient(block0, k0, zigzag, entry0)
            _store_coefficient(block1, k1, zigzag, entry1)
        done = False
        if k0 > U(63):
            error0 |= k0 - U(1)
            store_uint8(ends0 + i0, np.uint8(k0))
            i0 += U(1)
            block0 += U(128)
            k0 = U(0)
            if i0 < count0:
                table0 = ac_tables[i0]
                pointer0, buffer0, available0, k0 = _begin_block(
                    pointer0, buffer0, available0, dc_tables[i0], short, long, block0
                )
            else:
                done = True
        if k1 > U(63):
            error1 |= k1 - U(1)
            store_uint8(ends1 + i1, np.uint8(k1))
            i1 += U(1)
            block1 += U(128)
            k1 = U(0)
            if i1 < count1:
                table1 = ac_tables[i1]
                pointer1, buffer1, available1, k1 = _begin_block(
                    pointer1, buffer1, available1, dc_tables[i1], short, long, block1
                )
            else:
                done = True
        if done:
            break
    lanes[0, POINTER], lanes[0, BUFFER], lanes[0, AVAILABLE], lanes[0, ERROR] = pointer0, buffer0, available0, error0
    lanes[1, POINTER], lanes[1, BUFFER], lanes[1, AVAILABLE], lanes[1, ERROR] = pointer1, buffer1, available1, error1
    lanes[0, K], lanes[0, BLOCK], lanes[1, K], lanes[1, BLOCK] = k0, i0, k1, i1
