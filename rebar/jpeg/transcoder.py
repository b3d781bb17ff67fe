"""Transcode JPEGs losslessly: insert restart markers and use the standard Huffman tables.

Optionally, coefficients are requantized to coarser steps, which loses no more than decoding and re-encoding. Symbols
are not decoded to coefficients: each Huffman code is replaced and the bits of its magnitude are copied. Only DC
differences change, where a restart marker resets the prediction (ITU-T T.81, F.1.2 and F.2.2). All input is validated,
so the output can be decoded completely. Supported inputs are those of :mod:`rebar.jpeg.kernels.markers`. Comments and
application data, such as thumbnails, color profiles and Exif, are dropped.
"""

import functools
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.format import AC_CODES, DC_CODES, ZIGZAG, Header, Status, code_table, quantization_tables
from rebar.jpeg.kernel_arguments import (
    SCRATCH_PADDING,
    SHORT_BITS,
    SPECIFICATION_BYTES,
    Tables,
    array_types,
    descriptors,
    new_table_store,
    new_tables,
    read_ahead_bytes,
)
from rebar.jpeg.kernel_cache import Kernel, load_kernel

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


_ARGUMENT_TYPES = array_types(new_transcode_call(1, 1))
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_DHT_SEGMENTS = b"".join(
    b"\xff\xc4" + struct.pack(">HB", 3 + len(codes), table_class << 4 | number) + codes
    for number in range(2)
    for table_class, codes in enumerate((DC_CODES[number], AC_CODES[number]))
)


class Transcoder:
    """Transcodes JPEGs. Owns scratch memory, so each thread needs its own. Kernels run without the GIL.

    Raises RebarError if the kernels cannot be compiled.
    """

    def __init__(self) -> None:
        self._read_header, self._transcode = load_kernel("read_header"), load_kernel("transcode")
        self._set_arrays(new_transcode_call(0, 1024))

    def read_header(self, jpeg: NDArray[np.uint8]) -> tuple[Status, Header]:
        """Parse a JPEG's header. Call this before :meth:`write`, which uses the tables that were read last."""
        self._call(self._read_header, jpeg)
        return Status(int(self._arrays.result[0])), Header(*self._arrays.header.tolist())

    def quantization(self, component: int) -> NDArray[np.int16]:
        """Return a component's quantization table in the JPEG that was read last: ``[64]``, in natural order."""
        tables = self._arrays.tables
        return tables.quantization[tables.components[component, 3]]

    def write(
        self, jpeg: NDArray[np.uint8], header: Header, interval: int, quality: int | None = None
    ) -> tuple[Status, NDArray[np.uint8]]:
        """Transcode a JPEG, with a restart marker every ``interval`` MCUs (0: none).

        Returns the status and the JPEG, uint8 ``[n]``, which is empty unless the status is OK. ``header`` is the result
        of :meth:`read_header` for the same JPEG. With ``quality``, coefficients are requantized so that no quantization
        step is finer than libjpeg's at this quality.
        """
        mcus = -(-header.width // (8 * header.h_samp)) * -(-header.height // (8 * header.v_samp))
        segments = -(-mcus // header.restart_interval) if header.restart_interval else 1
        if 2 * segments > jpeg.size or mcus > 4 * jpeg.size:  # a marker takes at least two bytes, a block two bits
            return Status.TRUNCATED, np.zeros(0, np.uint8)
        steps = tuple(self.quantization(component).tobytes() for component in range(header.components))
        tables, ratios = _requantized_tables(steps, quality)
        headers = _headers(header, interval, tables)
        # The standard codes may be longer than the file's. An image that would double in size is refused.
        capacity = 2 * jpeg.size + 8 * (mcus // interval + 1 if interval else 1) + 4096
        if self._arrays.out.size < capacity or self._arrays.scratch.segments.shape[1] < segments:
            capacity, segments = capacity * 3 // 2, max(1024, segments * 3 // 2)
            scratch = new_transcode_scratch(capacity, segments)
            self._set_arrays(self._arrays._replace(out=np.zeros(capacity, np.uint8), scratch=scratch))
        arrays = self._arrays
        arrays.out[: len(headers)] = np.frombuffer(headers, np.uint8)
        arrays.scratch.ratios[: len(ratios)] = ratios
        arrays.settings[:] = interval, quality is not None, len(headers)
        self._call(self._transcode, jpeg)
        status, end = arrays.result.tolist()
        return Status(status), arrays.out[:end].copy()

    def _set_arrays(self, arrays: TranscodeCall) -> None:
        assert array_types(arrays) == _ARGUMENT_TYPES  # the kernel would misinterpret arrays of other types
        self._arrays, self._descriptors = arrays, descriptors(arrays)

    def _call(self, kernel: Kernel, jpeg: NDArray[np.uint8]) -> None:
        if jpeg.dtype != np.uint8 or jpeg.ndim != 1 or not jpeg.flags.c_contiguous:
            raise ValueError("a JPEG must be contiguous uint8 [bytes]")
        self._descriptors[0, :2] = jpeg.__array_interface__["data"][0], jpeg.size  # TranscodeCall.data
        kernel(self._descriptors.ctypes.data)


@functools.lru_cache(maxsize=64)
def _requantized_tables(steps: tuple[bytes, ...], quality: int | None) -> tuple[list[bytes], NDArray[np.int64]]:
    """Return the quantization tables to write, one per component, and the ratios of the old steps to the new ones.

    ``steps`` are the old tables, int16 in natural order; the new tables are in zigzag order.
    """
    before = np.stack([np.frombuffer(component, np.int16)[ZIGZAG[:64]] for component in steps]).astype(np.int64)
    after = before
    if quality is not None:
        after = np.maximum(before, quantization_tables(quality)[np.minimum(np.arange(len(steps)), 1)])
    ratios = (2 * before * (1 << RATIO_BITS) + after) // np.maximum(2 * after, 1)
    return [component.astype(np.uint8).tobytes() for component in after], ratios


def _headers(header: Header, interval: int, tables: list[bytes]) -> bytes:
    """Return all markers before the entropy-coded data; ``tables`` are each component's, in zigzag order."""
    distinct = sorted(set(tables), key=tables.index)
    parts = [b"\xff\xd8", _JFIF]
    parts += [b"\xff\xdb" + struct.pack(">HB", 67, number) + table for number, table in enumerate(distinct)]
    frame = struct.pack(">BHHB", 8, header.height, header.width, header.components)
    scan = struct.pack("B", header.components)
    for i, table in enumerate(tables):
        sampling = header.h_samp << 4 | header.v_samp if i == 0 else 0x11
        frame += struct.pack("BBB", i + 1, sampling, distinct.index(table))
        scan += struct.pack("BB", i + 1, 0x11 if i else 0)
    parts.append(b"\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame)
    parts.append(_DHT_SEGMENTS if header.components > 1 else _DHT_SEGMENTS[: len(_DHT_SEGMENTS) // 2])
    if interval:
        parts.append(b"\xff\xdd" + struct.pack(">HH", 4, interval))
    parts.append(b"\xff\xda" + struct.pack(">H", 5 + len(scan)) + scan + b"\x00\x3f\x00")
    return b"".join(parts)
