"""The arguments, tables and scratch memory of the transcoder's kernels, as NumPy arrays. Does not import numba."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.standard_tables import AC_CODES, DC_CODES, code_table
from rebar.jpeg.workspace import (
    SCRATCH_PADDING,
    SHORT_BITS,
    SPECIFICATION_BYTES,
    Tables,
    new_table_store,
    new_tables,
    read_ahead_bytes,
)

MULTI_SYMBOL_BITS = 12
MAX_ENTRY_BITS = 32  # output bits of one table entry
BLOCK_ENDS = 64
SKIP_ENDS_AT = 4  # the bit of a ``Codes.skips`` entry
RATIO_BITS = 15
CODER_FIELDS = 10
_BITS_MARGIN = read_ahead_bytes(1) + SCRATCH_PADDING


class Codes(NamedTuple):
    """The standard Huffman codes, and tables that map a file's codes to them.

    ``dc`` and ``ac`` uint32 ``[2, 256]`` are the standard codes of luma and chroma by symbol.

    ``symbols`` uint64 ``[3, 2**SHORT_BITS]`` is indexed by component and the next bits. Bits 0-7 are the number of
    bits to read, 8-15 how many of them are the magnitude, 16-23 the increment of the coefficient index, 24-31 the
    length and 32-63 the bits of the code to write; zero for codes longer than SHORT_BITS.

    ``multi_symbols`` uint64 ``[3, 2**MULTI_SYMBOL_BITS]`` covers all symbols that are completely within the next bits.
    Bits 0-5 are the number of bits to read, bit 6 whether the block ends, 8-15 the increment of the index before that,
    16-21 the length and 32-63 the bits to write; zero if no symbol is complete. ``known`` uint8 ``[3, 272]`` is the
    specification from which a component's row was built.

    ``standard`` uint8 ``[2, 2, 272]`` are the standard specifications by class and by luma and chroma. ``skips`` uint16
    ``[2, 2**MULTI_SYMBOL_BITS]`` is like ``multi_symbols`` for files that have the standard codes: bits 0-3 are the
    number of bits, bit 4 whether the block ends, 8-15 the increment before that, or 255 if no symbol is complete.
    """

    dc: NDArray[np.uint32]
    ac: NDArray[np.uint32]
    symbols: NDArray[np.uint64]
    multi_symbols: NDArray[np.uint64]
    known: NDArray[np.uint8]
    standard: NDArray[np.uint8]
    skips: NDArray[np.uint16]


def new_codes() -> Codes:
    """Return the standard codes, with empty tables for three components."""
    return Codes(
        np.stack([code_table(codes) for codes in DC_CODES]),
        np.stack([code_table(codes) for codes in AC_CODES]),
        np.zeros((3, 1 << SHORT_BITS), np.uint64),
        np.zeros((3, 1 << MULTI_SYMBOL_BITS), np.uint64),
        np.zeros((3, SPECIFICATION_BYTES), np.uint8),
        np.stack([[_padded(codes) for codes in both] for both in (DC_CODES, AC_CODES)]),
        np.stack([_skip_table(codes) for codes in AC_CODES]),
    )


def _padded(specification: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(specification.ljust(SPECIFICATION_BYTES, b"\0"), np.uint8)


def _skip_table(specification: bytes) -> NDArray[np.uint16]:
    """Return a row of ``Codes.skips``."""
    lengths = np.repeat(np.arange(1, 17), list(specification[:16]))
    by_code = lengths << 8 | np.frombuffer(specification[16:], np.uint8)
    by_bits = np.zeros(1 << 16, np.int64)
    entries = np.repeat(by_code, 1 << (16 - lengths))
    by_bits[: entries.size] = entries
    patterns = np.arange(1 << MULTI_SYMBOL_BITS) << (16 - MULTI_SYMBOL_BITS)
    read, advance, ends = np.zeros((3, patterns.size), np.int64)
    for _ in range(MULTI_SYMBOL_BITS // 2):  # no code is shorter than two bits
        entry = by_bits[(patterns << read) & 0xFFFF]
        length, run, size = entry >> 8, (entry >> 4) & 15, entry & 15
        taken = (entry > 0) & (read + length + size <= MULTI_SYMBOL_BITS) & (ends == 0)
        is_end = taken & (entry & 255 == 0)
        read += np.where(taken, length + size, 0)
        advance += np.where(taken & ~is_end, run + 1, 0)
        ends |= is_end
    advance[read == 0] = 255
    return (read | ends << SKIP_ENDS_AT | advance << 8).astype(np.uint16)


class TranscodeScratch(NamedTuple):
    """Scratch memory for the input and output of one segment, unstuffed, and for the bounds of all segments.

    ``coders`` uint64 ``[3, CODER_FIELDS]`` is one Coder per component, ``predictions`` int64 ``[2, 3]`` the DC
    predictions of input and output, ``ratios`` int32 ``[3, 64]`` as in Coder.
    """

    read: NDArray[np.uint8]
    written: NDArray[np.uint8]
    segments: NDArray[np.int64]
    coders: NDArray[np.uint64]
    predictions: NDArray[np.int64]
    ratios: NDArray[np.int32]


def new_transcode_scratch(capacity: int, segments: int) -> TranscodeScratch:
    """Return scratch memory for JPEGs of up to ``capacity`` bytes with up to ``segments`` restart segments."""
    return TranscodeScratch(
        np.zeros(capacity + _BITS_MARGIN, np.uint8),
        np.zeros(capacity, np.uint8),
        np.zeros((2, segments), np.int64),
        np.zeros((3, CODER_FIELDS), np.uint64),
        np.zeros((2, 3), np.int64),
        np.zeros((3, 64), np.int32),
    )


class TranscodeCall(NamedTuple):
    """The arguments of either transcoder kernel.

    ``header`` int64 ``[7]`` has the fields of a Header. ``settings`` int64 ``[3]`` are the restart interval to write
    (in MCUs; 0: none), whether to requantize coefficients, and the offset of the entropy-coded data in ``out``.
    ``result`` int64 ``[2]`` is the status and the end of the output.
    """

    data: NDArray[np.uint8]
    header: NDArray[np.int64]
    settings: NDArray[np.int64]
    result: NDArray[np.int64]
    out: NDArray[np.uint8]
    tables: Tables
    codes: Codes
    scratch: TranscodeScratch


def new_transcode_call(capacity: int, segments: int) -> TranscodeCall:
    """Return arguments without data, with an output of ``capacity`` bytes."""
    return TranscodeCall(
        np.zeros(1, np.uint8),
        np.zeros(7, np.int64),
        np.zeros(3, np.int64),
        np.zeros(2, np.int64),
        np.zeros(capacity, np.uint8),
        new_tables(new_table_store()),
        new_codes(),
        new_transcode_scratch(capacity, segments),
    )
