"""Blocks from one stream of Huffman codes to another, symbol by symbol, without their coefficients.

A stream's state is three numbers each: of the one that is read the pointer, the next bits at the top of a buffer, and
how many there are; of the one that is written the address, the bits that are pending, and how many those are.
"""

from typing import NamedTuple

import numpy as np

from rebar.jpeg.kernels.bit_writer import put
from rebar.jpeg.kernels.huffman import END_OF_BLOCK, LONG
from rebar.jpeg.kernels.jit import compiled, inlined
from rebar.jpeg.kernels.simd import load_big_endian, load_uint16, load_uint32, load_uint64
from rebar.jpeg.kernels.transcode_tables import exchange_entry
from rebar.jpeg.transcode_workspace import BLOCK_ENDS, RATIO_BITS, SEVERAL_BITS, SKIP_ENDS_AT
from rebar.jpeg.workspace import SHORT_BITS

U = np.uint64
MOST_BLOCK_BYTES = 64 * 4 + 64
"""Written for a block at most: 26 bits a symbol, and what a store reaches beyond."""
NO_CODE = 65  # as a step: from any coefficient beyond the last


class Coder(NamedTuple):
    """The addresses of what a component's blocks are read and written with.

    The long tables it is read with, the standard codes as in ``Codes``, its row of ``Codes.exchange``, and 64 int32,
    in zigzag order, by which coefficients are multiplied, in units of 2**-RATIO_BITS. Addresses, because numba counts
    references to arrays, and would do so for every block. Then its row of ``Codes.several``, the short table of its DC
    codes, its row of ``Codes.skips``, and whether its codes are the standard ones already.
    """

    dc_long: np.uint64
    ac_long: np.uint64
    dc_codes: np.uint64
    ac_codes: np.uint64
    exchange: np.uint64
    ratios: np.uint64
    several: np.uint64
    dc_short: np.uint64
    skips: np.uint64
    is_standard: np.uint64


@inlined
def read_difference(coder: Coder, buffer: np.uint64, have: np.uint64) -> tuple[int, int, np.uint64, np.uint64]:
    """Read a DC difference: ``(length, difference, buffer, have)``; no ``length`` where the code is unknown.

    ``length`` is that of the code alone, or of code and magnitude.
    """
    short = U(load_uint32(coder.dc_short + ((buffer >> U(64 - SHORT_BITS)) << U(2))))
    if not short & U(LONG):
        total = short & U(63)
        return np.int64(total), np.int64(np.int16(short >> U(16))), buffer << total, have - total
    entry = np.int64(load_uint16(coder.dc_long + ((buffer >> U(48)) << U(1))))
    length, size = entry >> 8, entry & 255
    bits = np.int64(((buffer << U(length)) >> U(1)) >> U(63 - size))
    difference = bits if size == 0 or bits >> (size - 1) else bits - ((1 << size) - 1)
    return length, difference, buffer << U(length + size), have - U(length + size)


@inlined
def bits_of(value: int) -> int:
    """How many bits a magnitude takes (T.81, F.1.2.1)."""
    size, magnitude = 0, abs(value)
    while magnitude >> size:
        size += 1
    return size


@inlined
def rounded(value: int, ratio: np.uint64) -> int:
    """A coefficient in coarser steps; ``ratio`` is where what it is multiplied by lies."""
    magnitude = (abs(value) * np.int64(load_uint32(ratio)) + (1 << (RATIO_BITS - 1))) >> RATIO_BITS
    return magnitude if value >= 0 else -magnitude


@inlined
def round_block(
    coder: Coder,
    pointer: np.uint64,
    buffer: np.uint64,
    have: np.uint64,
    address: np.uint64,
    pending: np.uint64,
    count: np.uint64,
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]:
    """As :func:`exchange_block`, with coefficients in coarser steps: those that become zero lengthen a run."""
    k, last = U(1), U(0)
    while k < U(64):
        pointer, buffer, have = refill(pointer, buffer, have)
        found = load_uint64(coder.exchange + ((buffer >> U(64 - SHORT_BITS)) << U(3)))
        if found == U(0):
            found = _long_exchange(coder, buffer)
        total, size = found & U(63), (found >> U(8)) & U(63)
        bits = np.int64(((buffer << (total - size)) >> U(1)) >> (U(63) - size))
        buffer <<= total
        have -= total
        k += (found >> U(16)) & U(255)
        if size == U(0) or k > U(64):
            continue
        negative = (bits >> (np.int64(size) - 1)) == 0
        magnitude = (1 << np.int64(size)) - 1 - bits if negative else bits
        magnitude = rounded(magnitude, coder.ratios + ((k - U(1)) << U(2)))
        if magnitude == 0:
            continue
        run = k - U(2) - last
        while run > U(15):
            code = U(load_uint32(coder.ac_codes + U(0xF0 << 2)))
            address, pending, count = put(code >> U(8), code & U(255), address, pending, count)
            run -= U(16)
        size = U(bits_of(magnitude))
        bits = (1 << np.int64(size)) - 1 - magnitude if negative else magnitude
        code = U(load_uint32(coder.ac_codes + (((run << U(4)) | size) << U(2))))
        address, pending, count = put(
            ((code >> U(8)) << size) | U(bits), (code & U(255)) + size, address, pending, count
        )
        last = k - U(1)
    if last < U(63):
        code = U(load_uint32(coder.ac_codes))
        address, pending, count = put(code >> U(8), code & U(255), address, pending, count)
    return k, pointer, buffer, have, address, pending, count


@inlined
def exchange_block(
    coder: Coder,
    pointer: np.uint64,
    buffer: np.uint64,
    have: np.uint64,
    address: np.uint64,
    pending: np.uint64,
    count: np.uint64,
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]:
    """The AC coefficients of a block: ``(k, pointer, buffer, have, address, pending, count)``.

    ``k`` is the number of the coefficient behind the last one, or END_OF_BLOCK and more.
    """
    k = U(1)
    while k < U(64):
        pointer, buffer, have = refill(pointer, buffer, have)
        several = load_uint64(coder.several + ((buffer >> U(64 - SEVERAL_BITS)) << U(3)))
        if several == U(0) or k + ((several >> U(8)) & U(255)) >= U(64):
            found = load_uint64(coder.exchange + ((buffer >> U(64 - SHORT_BITS)) << U(3)))
            if found == U(0):
                found = _long_exchange(coder, buffer)
            buffer, have, address, pending, count = _exchange_symbol(found, buffer, have, address, pending, count)
            k += (found >> U(16)) & U(255)
            continue
        buffer, have, k, address, pending, count = _exchange_several(several, buffer, have, k, address, pending, count)
        several = load_uint64(coder.several + ((buffer >> U(64 - SEVERAL_BITS)) << U(3)))
        if k >= U(64) or several == U(0) or k + ((several >> U(8)) & U(255)) >= U(64):
            continue
        buffer, have, k, address, pending, count = _exchange_several(several, buffer, have, k, address, pending, count)
        several = load_uint64(coder.several + ((buffer >> U(64 - SEVERAL_BITS)) << U(3)))
        if k >= U(64) or several == U(0) or k + ((several >> U(8)) & U(255)) >= U(64):
            continue
        buffer, have, k, address, pending, count = _exchange_several(several, buffer, have, k, address, pending, count)
    return k, pointer, buffer, have, address, pending, count


@inlined
def skip_block(
    coder: Coder, pointer: np.uint64, buffer: np.uint64, have: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Read over a block's AC coefficients, which have the standard codes: ``(k, pointer, buffer, have)``."""
    k = U(1)
    while k < U(64):
        pointer, buffer, have = refill(pointer, buffer, have)
        for _ in range(4):
            found = U(load_uint16(coder.skips + ((buffer >> U(64 - SEVERAL_BITS)) << U(1))))
            advance = found >> U(8)
            if k + advance >= U(64):  # or not even one symbol
                entry = U(load_uint16(coder.ac_long + ((buffer >> U(48)) << U(1))))
                total = (entry >> U(8)) + (entry & U(15))
                if entry == U(0):
                    return U(NO_CODE), pointer, buffer, have
                buffer, have = buffer << total, have - total
                k += ((entry >> U(4)) & U(15)) + U(1) if entry & U(255) else U(END_OF_BLOCK)
                break
            buffer, have, k = buffer << (found & U(15)), have - (found & U(15)), k + advance
            if found & U(1 << SKIP_ENDS_AT):
                return k + U(END_OF_BLOCK), pointer, buffer, have
    return k, pointer, buffer, have


@inlined
def refill(pointer: np.uint64, buffer: np.uint64, have: np.uint64) -> tuple[np.uint64, np.uint64, np.uint64]:
    """At least 56 bits at the top of ``buffer``: enough for two symbols."""
    buffer |= load_big_endian(pointer) >> have
    return pointer + ((U(63) - have) >> U(3)), buffer, have | U(56)


@compiled
def _long_exchange(coder: Coder, buffer: np.uint64) -> np.uint64:
    """What to make of a code longer than SHORT_BITS; where there is none, a step far too wide."""
    entry = np.int64(load_uint16(coder.ac_long + ((buffer >> U(48)) << U(1))))
    return exchange_entry(entry, coder.ac_codes) if entry else U(NO_CODE << 16)


@inlined
def _exchange_symbol(
    found: np.uint64, buffer: np.uint64, have: np.uint64, address: np.uint64, pending: np.uint64, count: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]:
    """Read a symbol and write it: ``(buffer, have, address, pending, count)``."""
    total, size = found & U(63), (found >> U(8)) & U(63)
    magnitude = ((buffer << (total - size)) >> U(1)) >> (U(63) - size)
    address, pending, count = put(
        ((found >> U(32)) << size) | magnitude, (found >> U(24)) & U(63), address, pending, count
    )
    return buffer << total, have - total, address, pending, count


@inlined
def _exchange_several(
    several: np.uint64,
    buffer: np.uint64,
    have: np.uint64,
    k: np.uint64,
    address: np.uint64,
    pending: np.uint64,
    count: np.uint64,
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]:
    """Read some symbols and write them: ``(buffer, have, k, address, pending, count)``."""
    total = several & U(63)
    address, pending, count = put(several >> U(32), (several >> U(16)) & U(63), address, pending, count)
    k += ((several >> U(8)) & U(255)) + ((several & U(BLOCK_ENDS)) << U(1))
    return buffer << total, have - total, k, address, pending, count
