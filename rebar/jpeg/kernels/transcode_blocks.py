"""Transcode blocks from one set of Huffman codes to another, symbol by symbol, without decoding to coefficients.

The input stream's state is ``pointer``, ``buffer`` (the next bits, at the top) and ``available`` (their number). The
output stream's state is ``address``, ``pending`` (the bits not yet written, at the top) and ``count`` (their number).
"""

from typing import NamedTuple

import numpy as np

from rebar.jpeg.kernel_arguments import SHORT_BITS
from rebar.jpeg.kernels.huffman import END_OF_BLOCK, LONG, symbol_entry
from rebar.jpeg.kernels.jit import (
    compiled,
    inlined,
    load_big_endian,
    load_uint16,
    load_uint32,
    load_uint64,
    store_big_endian,
)
from rebar.jpeg.transcoder import BLOCK_ENDS, MULTI_SYMBOL_BITS, RATIO_BITS, SKIP_ENDS_AT

U = np.uint64
MAX_BLOCK_BYTES = 64 * 4 + 64
"""The most bytes written for a block: 26 bits per symbol, plus the width of a store."""
NO_CODE = 65  # an index increment that always exceeds the last coefficient


class Coder(NamedTuple):
    """The addresses of the tables of one component.

    ``dc_short``, ``dc_long`` and ``ac_long`` are the lookup tables of the file's codes. ``dc_codes``, ``ac_codes``,
    ``symbols``, ``multi_symbols`` and ``skips`` are rows of :class:`rebar.jpeg.transcoder.Codes`. ``ratios``
    are 64 int32 in zigzag order by which coefficients are multiplied, in units of 2**-RATIO_BITS. ``is_standard`` is
    whether the file has the standard codes. Addresses are used because numba would count references to arrays for
    every block.
    """

    dc_long: np.uint64
    ac_long: np.uint64
    dc_codes: np.uint64
    ac_codes: np.uint64
    symbols: np.uint64
    ratios: np.uint64
    multi_symbols: np.uint64
    dc_short: np.uint64
    skips: np.uint64
    is_standard: np.uint64


@inlined
def put_bits(
    bits: np.uint64, length: np.uint64, address: np.uint64, pending: np.uint64, count: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Write ``length`` bits, 1 to 56; return ``(address, pending, count)``, where fewer than 8 bits are pending."""
    count += length
    pending |= bits << (U(64) - count)
    store_big_endian(address, pending)
    return address + (count >> U(3)), pending << (count & U(56)), count & U(7)


@inlined
def copy_bits(
    source: np.uint64, start: int, end: int, address: np.uint64, pending: np.uint64, count: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Write bits ``start`` to ``end`` of the data at ``source``; return ``(address, pending, count)``."""
    while start < end:
        length = min(end - start, 56)
        bits = (load_big_endian(source + U(start >> 3)) << U(start & 7)) >> U(64 - length)
        address, pending, count = put_bits(bits, U(length), address, pending, count)
        start += length
    return address, pending, count


@inlined
def read_difference(coder: Coder, buffer: np.uint64, available: np.uint64) -> tuple[int, int, np.uint64, np.uint64]:
    """Read a DC difference; return ``(length, difference, buffer, available)``.

    ``length`` is 0 for an invalid code, otherwise positive.
    """
    short = U(load_uint32(coder.dc_short + ((buffer >> U(64 - SHORT_BITS)) << U(2))))
    if not short & U(LONG):
        total = short & U(63)
        return np.int64(total), np.int64(np.int16(short >> U(16))), buffer << total, available - total
    entry = np.int64(load_uint16(coder.dc_long + ((buffer >> U(48)) << U(1))))
    length, size = entry >> 8, entry & 255
    bits = np.int64(((buffer << U(length)) >> U(1)) >> U(63 - size))
    difference = bits if size == 0 or bits >> (size - 1) else bits - ((1 << size) - 1)
    return length, difference, buffer << U(length + size), available - U(length + size)


@inlined
def magnitude_bits(value: int) -> int:
    """Return the number of bits of a magnitude (T.81, F.1.2.1)."""
    size, magnitude = 0, abs(value)
    while magnitude >> size:
        size += 1
    return size


@inlined
def requantize(value: int, ratio: np.uint64) -> int:
    """Multiply a coefficient by the ratio at address ``ratio``, and round it."""
    magnitude = (abs(value) * np.int64(load_uint32(ratio)) + (1 << (RATIO_BITS - 1))) >> RATIO_BITS
    return magnitude if value >= 0 else -magnitude


@inlined
def requantize_block(
    coder: Coder,
    pointer: np.uint64,
    buffer: np.uint64,
    available: np.uint64,
    address: np.uint64,
    pending: np.uint64,
    count: np.uint64,
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]:
    """Transcode and requantize a block, like :func:`transcode_block`. Coefficients that become zero extend a run."""
    k, last = U(1), U(0)
    while k < U(64):
        pointer, buffer, available = refill(pointer, buffer, available)
        found = load_uint64(coder.symbols + ((buffer >> U(64 - SHORT_BITS)) << U(3)))
        if found == U(0):
            found = _long_symbol_entry(coder, buffer)
        total, size = found & U(63), (found >> U(8)) & U(63)
        bits = np.int64(((buffer << (total - size)) >> U(1)) >> (U(63) - size))
        buffer <<= total
        available -= total
        k += (found >> U(16)) & U(255)
        if size == U(0) or k > U(64):
            continue
        negative = (bits >> (np.int64(size) - 1)) == 0
        magnitude = (1 << np.int64(size)) - 1 - bits if negative else bits
        magnitude = requantize(magnitude, coder.ratios + ((k - U(1)) << U(2)))
        if magnitude == 0:
            continue
        run = k - U(2) - last
        while run > U(15):
            code = U(load_uint32(coder.ac_codes + U(0xF0 << 2)))
            address, pending, count = put_bits(code >> U(8), code & U(255), address, pending, count)
            run -= U(16)
        size = U(magnitude_bits(magnitude))
        bits = (1 << np.int64(size)) - 1 - magnitude if negative else magnitude
        code = U(load_uint32(coder.ac_codes + (((run << U(4)) | size) << U(2))))
        address, pending, count = put_bits(
            ((code >> U(8)) << size) | U(bits), (code & U(255)) + size, address, pending, count
        )
        last = k - U(1)
    if last < U(63):
        code = U(load_uint32(coder.ac_codes))
        address, pending, count = put_bits(code >> U(8), code & U(255), address, pending, count)
    return k, pointer, buffer, available, address, pending, count


@inlined
def transcode_block(
    coder: Coder,
    pointer: np.uint64,
    buffer: np.uint64,
    available: np.uint64,
    address: np.uint64,
    pending: np.uint64,
    count: np.uint64,
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]:
    """Transcode a block's AC coefficients; return ``k`` and the state of both streams.

    ``k`` is the index after the last coefficient, or at least END_OF_BLOCK.
    """
    k = U(1)
    while k < U(64):
        pointer, buffer, available = refill(pointer, buffer, available)
        multi = load_uint64(coder.multi_symbols + ((buffer >> U(64 - MULTI_SYMBOL_BITS)) << U(3)))
        if multi == U(0) or k + ((multi >> U(8)) & U(255)) >= U(64):
            found = load_uint64(coder.symbols + ((buffer >> U(64 - SHORT_BITS)) << U(3)))
            if found == U(0):
                found = _long_symbol_entry(coder, buffer)
            buffer, available, address, pending, count = _transcode_symbol(
                found, buffer, available, address, pending, count
            )
            k += (found >> U(16)) & U(255)
            continue
        buffer, available, k, address, pending, count = _transcode_symbols(
            multi, buffer, available, k, address, pending, count
        )
        multi = load_uint64(coder.multi_symbols + ((buffer >> U(64 - MULTI_SYMBOL_BITS)) << U(3)))
        if k >= U(64) or multi == U(0) or k + ((multi >> U(8)) & U(255)) >= U(64):
            continue
        buffer, available, k, address, pending, count = _transcode_symbols(
            multi, buffer, available, k, address, pending, count
        )
        multi = load_uint64(coder.multi_symbols + ((buffer >> U(64 - MULTI_SYMBOL_BITS)) << U(3)))
        if k >= U(64) or multi == U(0) or k + ((multi >> U(8)) & U(255)) >= U(64):
            continue
        buffer, available, k, address, pending, count = _transcode_symbols(
            multi, buffer, available, k, address, pending, count
        )
    return k, pointer, buffer, available, address, pending, count


@inlined
def skip_block(
    coder: Coder, pointer: np.uint64, buffer: np.uint64, available: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Skip a block's AC coefficients in the standard codes; return ``(k, pointer, buffer, available)``."""
    k = U(1)
    while k < U(64):
        pointer, buffer, available = refill(pointer, buffer, available)
        for _ in range(4):
            found = U(load_uint16(coder.skips + ((buffer >> U(64 - MULTI_SYMBOL_BITS)) << U(1))))
            advance = found >> U(8)
            if k + advance >= U(64):  # or no complete symbol
                entry = U(load_uint16(coder.ac_long + ((buffer >> U(48)) << U(1))))
                total = (entry >> U(8)) + (entry & U(15))
                if entry == U(0):
                    return U(NO_CODE), pointer, buffer, available
                buffer, available = buffer << total, available - total
                k += ((entry >> U(4)) & U(15)) + U(1) if entry & U(255) else U(END_OF_BLOCK)
                break
            buffer, available, k = buffer << (found & U(15)), available - (found & U(15)), k + advance
            if found & U(1 << SKIP_ENDS_AT):
                return k + U(END_OF_BLOCK), pointer, buffer, available
    return k, pointer, buffer, available


@inlined
def refill(pointer: np.uint64, buffer: np.uint64, available: np.uint64) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Fill the buffer to at least 56 bits, enough for two symbols."""
    buffer |= load_big_endian(pointer) >> available
    return pointer + ((U(63) - available) >> U(3)), buffer, available | U(56)


@compiled
def _long_symbol_entry(coder: Coder, buffer: np.uint64) -> np.uint64:
    """Return the symbol entry of a code longer than SHORT_BITS, or one with NO_CODE for an invalid code."""
    entry = np.int64(load_uint16(coder.ac_long + ((buffer >> U(48)) << U(1))))
    return symbol_entry(entry, coder.ac_codes) if entry else U(NO_CODE << 16)


@inlined
def _transcode_symbol(
    found: np.uint64, buffer: np.uint64, available: np.uint64, address: np.uint64, pending: np.uint64, count: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]:
    """Transcode a symbol; return ``(buffer, available, address, pending, count)``."""
    total, size = found & U(63), (found >> U(8)) & U(63)
    magnitude = ((buffer << (total - size)) >> U(1)) >> (U(63) - size)
    address, pending, count = put_bits(
        ((found >> U(32)) << size) | magnitude, (found >> U(24)) & U(63), address, pending, count
    )
    return buffer << total, available - total, address, pending, count


@inlined
def _transcode_symbols(
    multi: np.uint64,
    buffer: np.uint64,
    available: np.uint64,
    k: np.uint64,
    address: np.uint64,
    pending: np.uint64,
    count: np.uint64,
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]:
    """Transcode the symbols of a multi-symbol entry; return ``(buffer, available, k, address, pending, count)``."""
    total = multi & U(63)
    address, pending, count = put_bits(multi >> U(32), (multi >> U(16)) & U(63), address, pending, count)
    k += ((multi >> U(8)) & U(255)) + ((multi & U(BLOCK_ENDS)) << U(1))
    return buffer << total, available - total, k, address, pending, count
