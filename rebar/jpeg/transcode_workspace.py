"""What the transcoder works with: NumPy arrays, made here and handed to its kernels. Nothing here needs numba."""

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
    room_behind,
)

SEVERAL_BITS = 12
BLOCK_ENDS = 64
SKIP_ENDS_AT = 4  # the bit of an entry of ``Codes.skips``
RATIO_BITS = 15
CODER_FIELDS = 10
_BITS_ROOM = room_behind(1) + SCRATCH_PADDING


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


class TranscodeScratch(NamedTuple):
    """Room for one segment's bits as read and as written, without stuffing, and for where the segments lie.

    ``coders`` uint64 ``[3, CODER_FIELDS]`` is a Coder a component, ``predictions`` int64 ``[2, 3]`` what is read and
    written, ``ratios`` int32 ``[3, 64]`` is told in Coder.
    """

    read: NDArray[np.uint8]
    written: NDArray[np.uint8]
    segments: NDArray[np.int64]
    coders: NDArray[np.uint64]
    predictions: NDArray[np.int64]
    ratios: NDArray[np.int32]


def new_transcode_scratch(room: int, segments: int) -> TranscodeScratch:
    """Room for JPEGs of up to ``room`` bytes."""
    return TranscodeScratch(
        np.zeros(room + _BITS_ROOM, np.uint8),
        np.zeros(room, np.uint8),
        np.zeros((2, segments), np.int64),
        np.zeros((3, CODER_FIELDS), np.uint64),
        np.zeros((2, 3), np.int64),
        np.zeros((3, 64), np.int32),
    )


class Transcoding(NamedTuple):
    """A call of either kernel.

    ``header`` int64 ``[7]`` has a Header's fields; ``settings`` int64 ``[3]``: the restart interval to write (units; 0:
    none), whether coefficients are rounded to coarser steps, and where in ``out`` the entropy-coded data goes;
    ``result`` int64 ``[2]``: the status, and where what was written ends.
    """

    data: NDArray[np.uint8]
    header: NDArray[np.int64]
    settings: NDArray[np.int64]
    result: NDArray[np.int64]
    out: NDArray[np.uint8]
    tables: Tables
    codes: Codes
    scratch: TranscodeScratch


def new_transcoding(room: int, segments: int) -> Transcoding:
    """A call without data, with room for ``room`` bytes."""
    return Transcoding(
        np.zeros(1, np.uint8),
        np.zeros(7, np.int64),
        np.zeros(3, np.int64),
        np.zeros(2, np.int64),
        np.zeros(room, np.uint8),
        new_tables(new_table_store()),
        new_codes(),
        new_transcode_scratch(room, segments),
    )
