"""The same coefficients in other bits: restart markers and the standard Huffman tables put into a JPEG, losslessly.

Where it is asked for, coefficients are rounded to coarser quantisation steps on the way: what decoding and encoding
anew come to, without what is lost between them.

Symbols are not decoded to coefficients: each is read, its code exchanged, and its magnitude's bits copied. Only the DC
differences change, where a prediction now begins anew (ITU-T T.81, F.1.2 and F.2.2). Everything that is read is
checked on the way, so what comes out can be decoded whole.

Taken is what :mod:`rebar.jpeg.headers` takes. Comments and application data are left out, with them thumbnails, colour
profiles and Exif.
"""

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.compiled import compiled, inlined, kernel, read_only
from rebar.jpeg.headers import ZIGZAG, Header, parse_header
from rebar.jpeg.huffman import END_OF_BLOCK
from rebar.jpeg.scratch import (
    SCRATCH_PADDING,
    SHORT_BITS,
    SPECIFICATION_BYTES,
    Tables,
    new_table_store,
    new_tables,
    room_behind,
)
from rebar.jpeg.segments import find_segments, remove_stuffing
from rebar.jpeg.standard_tables import AC_CODES, DC_CODES, code_table, quantisation_at
from rebar.jpeg.status import CORRUPT_DATA, CUT_SHORT, OK, UNSUPPORTED, Status
from rebar.jpeg.vectors import (
    copy_32_bytes,
    load_big_endian,
    load_uint8,
    load_uint16,
    load_uint32,
    load_uint64,
    marker_bytes,
    store_big_endian,
    store_uint8,
    trailing_zeros,
)

U = np.uint64
_BITS_ROOM = room_behind(1) + SCRATCH_PADDING
_MOST_BLOCK_BYTES = 64 * 4 + 64  # written for a block at most: 26 bits a symbol, and what a store reaches beyond
RATIO_BITS = 15
SEVERAL_BITS = 12
_BLOCK_ENDS = 64
_MOST_WRITTEN = 32  # bits at once
_NO_CODE = 65  # as a step: from any coefficient beyond the last
_MOST_DC = 2047  # what a coefficient of 8-bit samples may be
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_HUFFMAN = b"".join(
    b"\xff\xc4" + struct.pack(">HB", 3 + len(codes), table_class << 4 | number) + codes
    for number in range(2)
    for table_class, codes in enumerate((DC_CODES[number], AC_CODES[number]))
)


class _Codes(NamedTuple):
    """The standard codes, uint32 ``[2, 256]`` by luma and chroma, and the same by what stands in a file.

    ``exchange`` uint64 ``[3, 2**SHORT_BITS]`` by component and the next bits: bits 0-7 how many bits are read, 8-15 how
    many of them are the magnitude, 16-23 how far the coefficient's number advances, 24-31 the length and 32-63 the bits
    of the code to write; zero where the code is longer than SHORT_BITS.

    ``several`` uint64 ``[3, 2**SEVERAL_BITS]`` is the same of all symbols that lie whole in so many bits: bits 0-5 how
    many bits are read, bit 6 whether the block ends with them, 8-15 how far the number advances before that, 16-21 the
    length and 32-63 the bits to write; zero where not even one does. ``known`` uint8 ``[3, 272]`` is the specification
    that a component's row was made from.
    """

    dc: NDArray[np.uint32]
    ac: NDArray[np.uint32]
    exchange: NDArray[np.uint64]
    several: NDArray[np.uint64]
    known: NDArray[np.uint8]


class _Coder(NamedTuple):
    """The addresses of what a component's blocks are read and written with.

    The long tables it is read with, the standard codes as in ``_Codes``, its row of ``_Codes.exchange``, and 64 int32,
    in zigzag order, by which coefficients are multiplied, in units of 2**-RATIO_BITS. Addresses, because numba counts
    references to arrays, and would do so for every block.
    """

    dc_long: np.uint64
    ac_long: np.uint64
    dc_codes: np.uint64
    ac_codes: np.uint64
    exchange: np.uint64
    ratios: np.uint64
    several: np.uint64


class _Scratch(NamedTuple):
    """Room for one segment's bits as read and as written, without stuffing, and for where the segments lie.

    ``coders`` uint64 ``[3, 7]`` is a _Coder a component, ``predictions`` int64 ``[2, 3]`` what is read and written,
    ``ratios`` int32 ``[3, 64]`` is told in _Coder.
    """

    read: NDArray[np.uint8]
    written: NDArray[np.uint8]
    segments: NDArray[np.int64]
    coders: NDArray[np.uint64]
    predictions: NDArray[np.int64]
    ratios: NDArray[np.int32]


def _new_scratch(room: int, segments: int) -> _Scratch:
    return _Scratch(
        np.zeros(room + _BITS_ROOM, np.uint8),
        np.zeros(room, np.uint8),
        np.zeros((2, segments), np.int64),
        np.zeros((3, 7), np.uint64),
        np.zeros((2, 3), np.int64),
        np.zeros((3, 64), np.int32),
    )


class Transcoder:
    """Rewrites JPEGs; holds the scratch of one thread. The interpreter lock is not held while it works."""

    def __init__(self) -> None:
        self._tables = new_tables(new_table_store())
        self._codes = _Codes(
            np.stack([code_table(codes) for codes in DC_CODES]),
            np.stack([code_table(codes) for codes in AC_CODES]),
            np.zeros((3, 1 << SHORT_BITS), np.uint64),
            np.zeros((3, 1 << SEVERAL_BITS), np.uint64),
            np.zeros((3, SPECIFICATION_BYTES), np.uint8),
        )
        self._scratch = _new_scratch(0, 0)
        self._out = np.zeros(0, np.uint8)

    def read_header(self, jpeg: NDArray[np.uint8]) -> tuple[Status, Header]:
        """What stands before the JPEG's entropy-coded data; :meth:`write` takes the JPEG that was read last."""
        status, header = _read_header(read_only(jpeg), self._tables)
        return Status(status), header

    def quantisation(self, component: int) -> NDArray[np.int16]:
        """The steps ``[64]`` of a component of the JPEG that was read last, in natural order."""
        return self._tables.quantisation[self._tables.components[component, 3]]

    def write(
        self, jpeg: NDArray[np.uint8], header: Header, interval: int, quality: int | None = None
    ) -> tuple[Status, NDArray[np.uint8]]:
        """The JPEG with a restart marker every ``interval`` units (0: none), uint8 ``[n]``, and whether it went well.

        With ``quality``, no quantisation step is finer than libjpeg's at this quality. ``header`` is what
        :meth:`read_header` made of ``jpeg``. Where the status is not OK there are no bytes.
        """
        units = -(-header.width // (8 * header.across)) * -(-header.height // (8 * header.down))
        segments = -(-units // header.restart_interval) if header.restart_interval else 1
        if 2 * segments > jpeg.size or units > 4 * jpeg.size:  # a marker has two bytes, a block two bits
            return Status.CUT_SHORT, np.zeros(0, np.uint8)
        before = [self.quantisation(c)[ZIGZAG[:64]].astype(np.int64) for c in range(header.components)]
        steps = before
        if quality is not None:
            steps = [np.maximum(old, quantisation_at(quality)[min(c, 1)]) for c, old in enumerate(before)]
        front = self._front(header, interval, steps)
        self._make_room(jpeg.size, units // interval + 1 if interval else 1, segments)
        self._out[: len(front)] = np.frombuffer(front, np.uint8)
        for c, (old, new) in enumerate(zip(before, steps, strict=True)):
            self._scratch.ratios[c] = (2 * old * (1 << RATIO_BITS) + new) // np.maximum(2 * new, 1)
        status, end = _write(
            read_only(jpeg),
            header,
            self._tables,
            self._codes,
            interval,
            quality is not None,
            self._scratch,
            len(front),
            self._out,
        )
        return Status(status), self._out[:end].copy()

    def _make_room(self, size: int, segments_written: int, segments_read: int) -> None:
        """Standard codes may be longer than the file's: a picture that takes twice its bytes is not written."""
        room = 2 * size + 8 * segments_written + 4096
        if self._out.size < room or self._scratch.segments.shape[1] < segments_read:
            self._out = np.zeros(room * 3 // 2, np.uint8)
            self._scratch = _new_scratch(room * 3 // 2, max(1024, segments_read * 3 // 2))

    def _front(self, header: Header, interval: int, steps: list[NDArray[np.int64]]) -> bytes:
        """Everything up to the entropy-coded data; ``steps`` are each component's, in zigzag order."""
        tables = [component.astype(np.uint8).tobytes() for component in steps]
        distinct = sorted(set(tables), key=tables.index)
        parts = [b"\xff\xd8", _JFIF]
        parts += [b"\xff\xdb" + struct.pack(">HB", 67, number) + table for number, table in enumerate(distinct)]
        frame = struct.pack(">BHHB", 8, header.height, header.width, header.components)
        scan = struct.pack("B", header.components)
        for i, table in enumerate(tables):
            sampling = header.across << 4 | header.down if i == 0 else 0x11
            frame += struct.pack("BBB", i + 1, sampling, distinct.index(table))
            scan += struct.pack("BB", i + 1, 0x11 if i else 0)
        parts.append(b"\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame)
        parts.append(_HUFFMAN if header.components > 1 else _HUFFMAN[: len(_HUFFMAN) // 2])
        if interval:
            parts.append(b"\xff\xdd" + struct.pack(">HH", 4, interval))
        parts.append(b"\xff\xda" + struct.pack(">H", 5 + len(scan)) + scan + b"\x00\x3f\x00")
        return b"".join(parts)


@kernel
def _read_header(data: NDArray[np.uint8], tables: Tables) -> tuple[int, Header]:
    return parse_header(data, 0, data.size, tables)


@kernel
def _write(
    data: NDArray[np.uint8],
    header: Header,
    tables: Tables,
    codes: _Codes,
    interval: int,
    coarser: bool,
    scratch: _Scratch,
    at: int,
    out: NDArray[np.uint8],
) -> tuple[int, int]:
    """``(status, end)``: the entropy-coded data and EOI to ``out`` from ``at`` on."""
    units = -(-header.width // (8 * header.across)) * -(-header.height // (8 * header.down))
    every = header.restart_interval if header.restart_interval else units
    starts, ends = scratch.segments[0], scratch.segments[1]
    status, _ = find_segments(data, header.entropy_start, data.size, -(-units // every), starts, ends)
    if status != OK:
        return status, 0
    _set_coders(header, tables, codes, scratch.ratios, scratch.coders)
    coders, predictions = scratch.coders, scratch.predictions
    predictions[:, :] = 0
    blocks, luma = header.across * header.down + header.components - 1, header.across * header.down
    read, written = U(scratch.read.ctypes.data), U(scratch.written.ctypes.data)
    limit = written + U(scratch.written.size - _MOST_BLOCK_BYTES)
    address, pending, count = written, U(0), U(0)
    pointer, buffer, have = read, U(0), U(0)
    until_marker, markers, segment, until_segment = interval if interval else units, 0, 0, 0
    length = 0
    for _ in range(units):
        if until_segment == 0:
            length = remove_stuffing(data, starts[segment], ends[segment], scratch.read)
            pointer, buffer, have = read, U(0), U(0)
            predictions[0, :] = 0
            until_segment = every
            segment += 1
        if until_marker == 0:
            at = _put_segment(written, address, pending, count, out, at)
            if at < 0:
                return UNSUPPORTED, 0
            out[at], out[at + 1] = 0xFF, 0xD0 + markers % 8
            at += 2
            markers += 1
            address, pending, count = written, U(0), U(0)
            predictions[1, :] = 0
            until_marker = interval
        for block in range(blocks):
            component = max(block - luma + 1, 0)
            if address > limit:
                return UNSUPPORTED, 0
            coder = _Coder(
                coders[component, 0],
                coders[component, 1],
                coders[component, 2],
                coders[component, 3],
                coders[component, 4],
                coders[component, 5],
                coders[component, 6],
            )
            pointer, buffer, have = _refill(pointer, buffer, have)
            known, difference, buffer, have = _read_difference(coder, buffer, have)
            predictions[0, component] += difference
            dc = predictions[0, component]
            if coarser:
                dc = _rounded(dc, coder.ratios)
            difference = dc - predictions[1, component]
            predictions[1, component] = dc
            size = _bits_of(difference)
            if known == 0 or size > 11 or abs(predictions[0, component]) > _MOST_DC:
                return CORRUPT_DATA if known == 0 else UNSUPPORTED, 0
            code = np.int64(load_uint32(coder.dc_codes + U(size << 2)))
            bits = difference if difference >= 0 else difference + (1 << size) - 1
            address, pending, count = _put(
                U(((code >> 8) << size) | bits), U((code & 255) + size), address, pending, count
            )
            if coarser:
                k, pointer, buffer, have, address, pending, count = _round_block(
                    coder, pointer, buffer, have, address, pending, count
                )
            else:
                k, pointer, buffer, have, address, pending, count = _exchange_block(
                    coder, pointer, buffer, have, address, pending, count
                )
            if U(64) < k < U(END_OF_BLOCK):
                return CORRUPT_DATA, 0
            if np.int64(pointer - read) * 8 - np.int64(have) > 8 * length:
                return CUT_SHORT, 0
        until_segment -= 1
        until_marker -= 1
        if until_segment == 0 and 8 * length - (np.int64(pointer - read) * 8 - np.int64(have)) >= 8:
            return CORRUPT_DATA, 0
    at = _put_segment(written, address, pending, count, out, at)
    if at < 0:
        return UNSUPPORTED, 0
    out[at], out[at + 1] = 0xFF, 0xD9
    return OK, at + 2


@compiled
def _set_coders(
    header: Header, tables: Tables, codes: _Codes, ratios: NDArray[np.int32], coders: NDArray[np.uint64]
) -> None:
    """Fill ``coders`` and ``codes.exchange`` for the picture whose tables these are."""
    long = U(tables.store.long.ctypes.data)
    for component in range(header.components):
        kind, slot = min(component, 1), tables.components[component, 5]
        coders[component, 0] = long + U(tables.components[component, 4] << 17)
        coders[component, 1] = long + U(slot << 17)
        coders[component, 2] = U(codes.dc.ctypes.data) + U(kind << 10)
        coders[component, 3] = U(codes.ac.ctypes.data) + U(kind << 10)
        coders[component, 4] = U(codes.exchange.ctypes.data) + U(component << (SHORT_BITS + 3))
        coders[component, 5] = U(ratios.ctypes.data) + U(component << 8)
        coders[component, 6] = U(codes.several.ctypes.data) + U(component << (SEVERAL_BITS + 3))
        if _is_known(codes.known[component], tables.store.specifications[slot]):
            continue
        for bits in range(1 << SHORT_BITS):
            entry = np.int64(tables.store.long[(slot << 16) | (bits << (16 - SHORT_BITS))])
            fits = 0 < entry >> 8 <= SHORT_BITS
            codes.exchange[component, bits] = _exchange_entry(entry, coders[component, 3]) if fits else U(0)
        for bits in range(1 << SEVERAL_BITS):
            codes.several[component, bits] = _several_entry(U(bits) << U(64 - SEVERAL_BITS), coders[component, 4])


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
    """One of ``_Codes.several``, by what stands in a component's row of ``_Codes.exchange``."""
    read, advance, written, out, ends = U(0), U(0), U(0), U(0), U(0)
    while ends == U(0):
        found = load_uint64(exchange + ((buffer >> U(64 - SHORT_BITS)) << U(3)))
        total, size, step = found & U(63), (found >> U(8)) & U(63), (found >> U(16)) & U(255)
        wide = (found >> U(24)) & U(63)
        if found == U(0) or read + total > U(SEVERAL_BITS) or written + wide > U(_MOST_WRITTEN):
            break
        magnitude = ((buffer << (total - size)) >> U(1)) >> (U(63) - size)
        out = (out << wide) | ((found >> U(32)) << size) | magnitude
        written += wide
        read += total
        buffer <<= total
        if step == U(END_OF_BLOCK):
            ends = U(_BLOCK_ENDS)
        else:
            advance += step
    return read | ends | (advance << U(8)) | (written << U(16)) | (out << U(32))


@compiled
def _exchange_entry(entry: int, codes: np.uint64) -> np.uint64:
    """From the long table's entry to one of ``_Codes.exchange``; ``codes`` is where the codes to write lie."""
    length, run, size = entry >> 8, (entry >> 4) & 15, entry & 15
    symbol = entry & 255
    advance = run + 1
    if size == 0 and run != 15:
        symbol, advance = 0, END_OF_BLOCK  # a run before the end means nothing in a sequential JPEG
    code = np.int64(load_uint32(codes + U(symbol << 2)))
    written = (code & 255) + size
    return U(length + size) | U(size << 8) | U(advance << 16) | U(written << 24) | U((code >> 8) << 32)


@inlined
def _read_difference(coder: _Coder, buffer: np.uint64, have: np.uint64) -> tuple[int, int, np.uint64, np.uint64]:
    """Read a DC difference: ``(length, difference, buffer, have)``; no ``length`` where the code is unknown."""
    entry = np.int64(load_uint16(coder.dc_long + ((buffer >> U(48)) << U(1))))
    length, size = entry >> 8, entry & 255
    bits = np.int64(((buffer << U(length)) >> U(1)) >> U(63 - size))
    difference = bits if size == 0 or bits >> (size - 1) else bits - ((1 << size) - 1)
    return length, difference, buffer << U(length + size), have - U(length + size)


@inlined
def _bits_of(value: int) -> int:
    """How many bits a magnitude takes (T.81, F.1.2.1)."""
    size, magnitude = 0, abs(value)
    while magnitude >> size:
        size += 1
    return size


@inlined
def _rounded(value: int, ratio: np.uint64) -> int:
    """A coefficient in coarser steps; ``ratio`` is where what it is multiplied by lies."""
    magnitude = (abs(value) * np.int64(load_uint32(ratio)) + (1 << (RATIO_BITS - 1))) >> RATIO_BITS
    return magnitude if value >= 0 else -magnitude


@inlined
def _round_block(
    coder: _Coder,
    pointer: np.uint64,
    buffer: np.uint64,
    have: np.uint64,
    address: np.uint64,
    pending: np.uint64,
    count: np.uint64,
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]:
    """As :func:`_exchange_block`, with coefficients in coarser steps: those that become zero lengthen a run."""
    k, last = U(1), U(0)
    while k < U(64):
        pointer, buffer, have = _refill(pointer, buffer, have)
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
        magnitude = _rounded(magnitude, coder.ratios + ((k - U(1)) << U(2)))
        if magnitude == 0:
            continue
        run = k - U(2) - last
        while run > U(15):
            code = U(load_uint32(coder.ac_codes + U(0xF0 << 2)))
            address, pending, count = _put(code >> U(8), code & U(255), address, pending, count)
            run -= U(16)
        size = U(_bits_of(magnitude))
        bits = (1 << np.int64(size)) - 1 - magnitude if negative else magnitude
        code = U(load_uint32(coder.ac_codes + (((run << U(4)) | size) << U(2))))
        address, pending, count = _put(
            ((code >> U(8)) << size) | U(bits), (code & U(255)) + size, address, pending, count
        )
        last = k - U(1)
    if last < U(63):
        code = U(load_uint32(coder.ac_codes))
        address, pending, count = _put(code >> U(8), code & U(255), address, pending, count)
    return k, pointer, buffer, have, address, pending, count


@inlined
def _exchange_block(
    coder: _Coder,
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
        pointer, buffer, have = _refill(pointer, buffer, have)
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
def _refill(pointer: np.uint64, buffer: np.uint64, have: np.uint64) -> tuple[np.uint64, np.uint64, np.uint64]:
    """At least 56 bits at the top of ``buffer``: enough for two symbols."""
    buffer |= load_big_endian(pointer) >> have
    return pointer + ((U(63) - have) >> U(3)), buffer, have | U(56)


@compiled
def _long_exchange(coder: _Coder, buffer: np.uint64) -> np.uint64:
    """What to make of a code longer than SHORT_BITS; where there is none, a step far too wide."""
    entry = np.int64(load_uint16(coder.ac_long + ((buffer >> U(48)) << U(1))))
    return _exchange_entry(entry, coder.ac_codes) if entry else U(_NO_CODE << 16)


@inlined
def _exchange_symbol(
    found: np.uint64, buffer: np.uint64, have: np.uint64, address: np.uint64, pending: np.uint64, count: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]:
    """Read a symbol and write it: ``(buffer, have, address, pending, count)``."""
    total, size = found & U(63), (found >> U(8)) & U(63)
    magnitude = ((buffer << (total - size)) >> U(1)) >> (U(63) - size)
    address, pending, count = _put(
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
    address, pending, count = _put(several >> U(32), (several >> U(16)) & U(63), address, pending, count)
    k += ((several >> U(8)) & U(255)) + ((several & U(_BLOCK_ENDS)) << U(1))
    return buffer << total, have - total, k, address, pending, count


@inlined
def _put(
    bits: np.uint64, wide: np.uint64, address: np.uint64, pending: np.uint64, count: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Write ``wide`` bits, 1 to 32; fewer than 8 stay pending, at the top: ``(address, pending, count)``."""
    count += wide
    pending |= bits << (U(64) - count)
    store_big_endian(address, pending)
    return address + (count >> U(3)), pending << (count & U(56)), count & U(7)


@compiled
def _put_segment(
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
