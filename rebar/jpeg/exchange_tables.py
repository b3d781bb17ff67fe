"""Tables that exchange a file's Huffman codes for the standard ones: what is read, and what is written for it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.bit_writer import MOST_BITS
from rebar.jpeg.compiled import compiled
from rebar.jpeg.headers import Header
from rebar.jpeg.huffman import END_OF_BLOCK
from rebar.jpeg.scratch import SHORT_BITS, SPECIFICATION_BYTES, Tables
from rebar.jpeg.standard_tables import AC_CODES, DC_CODES, code_table
from rebar.jpeg.vectors import load_uint32, load_uint64

U = np.uint64
SEVERAL_BITS = 12
BLOCK_ENDS = 64
SKIP_ENDS_AT = 4  # the bit of an entry of ``Codes.skips``


class Codes(NamedTuple):
    """The standard codes, uint32 ``[2, 256]`` by luma and chroma, and the same by what stands in a file.

    ``exchange`` uint64 ``[3, 2**SHORT_BITS]`` by component and the next bits: bits 0-7 how many bits are read, 8-15 how
    many of them are the magnitude, 16-23 how far the coefficient's number advances, 24-31 the length and 32-63 the bits
    of the code to write; zero where the code is longer than SHORT_BITS.

    ``several`` uint64 ``[3, 2**SEVERAL_BITS]`` is the same of all symbols that lie whole in so many bits: bits 0-5 how
    many bits are read, bit 6 whether the block ends with them, 8-15 how far the number advances before that, 16-21 the
    length and 32-63 the bits to write; zero where not even one does. ``known`` uint8 ``[3, 272]`` is the specification
    that a component's row was made from.

    ``standard`` uint8 ``[2, 2, 272]`` by class and kind are the standard specifications. ``skips`` uint16
    ``[2, 2**SEVERAL_BITS]`` by kind and the next bits tells what is read as ``several`` does, of files that have the
    standard codes already: bits 0-3 how many bits, bit 4 whether the block ends with them, 8-15 how far the number
    advances before that; where not even one symbol lies whole in so many bits, it advances beyond any block.
    """

    dc: NDArray[np.uint32]
    ac: NDArray[np.uint32]
    exchange: NDArray[np.uint64]
    several: NDArray[np.uint64]
    known: NDArray[np.uint8]
    standard: NDArray[np.uint8]
    skips: NDArray[np.uint16]


def new_codes() -> Codes:
    """The standard codes, and rows for three components, not yet made."""
    return Codes(
        np.stack([code_table(codes) for codes in DC_CODES]),
        np.stack([code_table(codes) for codes in AC_CODES]),
        np.zeros((3, 1 << SHORT_BITS), np.uint64),
        np.zeros((3, 1 << SEVERAL_BITS), np.uint64),
        np.zeros((3, SPECIFICATION_BYTES), np.uint8),
        np.stack([[_padded(codes) for codes in both] for both in (DC_CODES, AC_CODES)]),
        np.stack([_skip_table(codes) for codes in AC_CODES]),
    )


def _padded(specification: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(specification.ljust(SPECIFICATION_BYTES, b"\0"), np.uint8)


def _skip_table(specification: bytes) -> NDArray[np.uint16]:
    """A row of ``Codes.skips``."""
    lengths = np.repeat(np.arange(1, 17), list(specification[:16]))
    of_code = lengths << 8 | np.frombuffer(specification[16:], np.uint8)
    of_bits = np.zeros(1 << 16, np.int64)
    entries = np.repeat(of_code, 1 << (16 - lengths))
    of_bits[: entries.size] = entries
    patterns = np.arange(1 << SEVERAL_BITS) << (16 - SEVERAL_BITS)
    read, advance, ends = np.zeros((3, patterns.size), np.int64)
    for _ in range(SEVERAL_BITS // 2):  # no code is shorter than two bits
        entry = of_bits[(patterns << read) & 0xFFFF]
        length, run, size = entry >> 8, (entry >> 4) & 15, entry & 15
        taken = (entry > 0) & (read + length + size <= SEVERAL_BITS) & (ends == 0)
        is_end = taken & (entry & 255 == 0)
        read += np.where(taken, length + size, 0)
        advance += np.where(taken & ~is_end, run + 1, 0)
        ends |= is_end
    advance[read == 0] = 255
    return (read | ends << SKIP_ENDS_AT | advance << 8).astype(np.uint16)


@compiled
def set_coders(
    header: Header, tables: Tables, codes: Codes, ratios: NDArray[np.int32], coders: NDArray[np.uint64]
) -> None:
    """Fill ``coders`` and ``codes.exchange`` for the picture whose tables these are."""
    long, short = U(tables.store.long.ctypes.data), U(tables.store.short.ctypes.data)
    for component in range(header.components):
        kind, slot = min(component, 1), tables.components[component, 5]
        dc_slot = tables.components[component, 4]
        coders[component, 0] = long + U(dc_slot << 17)
        coders[component, 1] = long + U(slot << 17)
        coders[component, 2] = U(codes.dc.ctypes.data) + U(kind << 10)
        coders[component, 3] = U(codes.ac.ctypes.data) + U(kind << 10)
        coders[component, 4] = U(codes.exchange.ctypes.data) + U(component << (SHORT_BITS + 3))
        coders[component, 5] = U(ratios.ctypes.data) + U(component << 8)
        coders[component, 6] = U(codes.several.ctypes.data) + U(component << (SEVERAL_BITS + 3))
        coders[component, 7] = short + U(dc_slot << (SHORT_BITS + 2))
        coders[component, 8] = U(codes.skips.ctypes.data) + U(kind << (SEVERAL_BITS + 1))
        coders[component, 9] = U(
            _is_same(codes.standard[0, kind], tables.store.specifications[dc_slot])
            and _is_same(codes.standard[1, kind], tables.store.specifications[slot])
        )
        if _is_known(codes.known[component], tables.store.specifications[slot]):
            continue
        for bits in range(1 << SHORT_BITS):
            entry = np.int64(tables.store.long[(slot << 16) | (bits << (16 - SHORT_BITS))])
            fits = 0 < entry >> 8 <= SHORT_BITS
            codes.exchange[component, bits] = exchange_entry(entry, coders[component, 3]) if fits else U(0)
        for bits in range(1 << SEVERAL_BITS):
            codes.several[component, bits] = _several_entry(U(bits) << U(64 - SEVERAL_BITS), coders[component, 4])


@compiled
def _is_same(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    same = True
    for i in range(SPECIFICATION_BYTES):
        same = same and one[i] == other[i]
    return same


@compiled
def _is_known(known: NDArray[np.uint8], specification: NDArray[np.uint8]) -> bool:
    """Whether a row was made from this specification; it is noted as if it had been."""
    same = True
    for i in range(SPECIFICATION_BYTES):
        same = same and known[i] == specification[i]
        known[i] = specification[i]
    return same


@compiled
def _several_entry(buffer: np.uint64, exchange: np.uint64) -> np.uint64:
    """One of ``Codes.several``, by what stands in a component's row of ``Codes.exchange``."""
    read, advance, written, out, ends = U(0), U(0), U(0), U(0), U(0)
    while ends == U(0):
        found = load_uint64(exchange + ((buffer >> U(64 - SHORT_BITS)) << U(3)))
        total, size, step = found & U(63), (found >> U(8)) & U(63), (found >> U(16)) & U(255)
        wide = (found >> U(24)) & U(63)
        if found == U(0) or read + total > U(SEVERAL_BITS) or written + wide > U(MOST_BITS):
            break
        magnitude = ((buffer << (total - size)) >> U(1)) >> (U(63) - size)
        out = (out << wide) | ((found >> U(32)) << size) | magnitude
        written += wide
        read += total
        buffer <<= total
        if step == U(END_OF_BLOCK):
            ends = U(BLOCK_ENDS)
        else:
            advance += step
    return read | ends | (advance << U(8)) | (written << U(16)) | (out << U(32))


@compiled
def exchange_entry(entry: int, codes: np.uint64) -> np.uint64:
    """From the long table's entry to one of ``Codes.exchange``; ``codes`` is where the codes to write lie."""
    length, run, size = entry >> 8, (entry >> 4) & 15, entry & 15
    symbol = entry & 255
    advance = run + 1
    if size == 0 and run != 15:
        symbol, advance = 0, END_OF_BLOCK  # a run before the end means nothing in a sequential JPEG
    code = np.int64(load_uint32(codes + U(symbol << 2)))
    written = (code & 255) + size
    return U(length + size) | U(size << 8) | U(advance << 16) | U(written << 24) | U((code >> 8) << 32)
