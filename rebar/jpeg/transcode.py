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

from rebar.jpeg.bit_writer import copy_bits, put, put_segment
from rebar.jpeg.compiled import kernel, read_only
from rebar.jpeg.exchange_blocks import (
    MOST_BLOCK_BYTES,
    RATIO_BITS,
    Coder,
    bits_of,
    exchange_block,
    read_difference,
    refill,
    round_block,
    rounded,
    skip_block,
)
from rebar.jpeg.exchange_tables import Codes, new_codes, set_coders
from rebar.jpeg.headers import ZIGZAG, Header, parse_header
from rebar.jpeg.huffman import END_OF_BLOCK
from rebar.jpeg.scratch import SCRATCH_PADDING, Tables, new_table_store, new_tables, room_behind
from rebar.jpeg.segments import find_segments, remove_stuffing
from rebar.jpeg.standard_tables import AC_CODES, DC_CODES, quantisation_at
from rebar.jpeg.status import CORRUPT_DATA, CUT_SHORT, OK, UNSUPPORTED, Status
from rebar.jpeg.vectors import load_uint32

U = np.uint64
_BITS_ROOM = room_behind(1) + SCRATCH_PADDING
_MOST_DC = 2047  # what a coefficient of 8-bit samples may be
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_HUFFMAN = b"".join(
    b"\xff\xc4" + struct.pack(">HB", 3 + len(codes), table_class << 4 | number) + codes
    for number in range(2)
    for table_class, codes in enumerate((DC_CODES[number], AC_CODES[number]))
)


class _Scratch(NamedTuple):
    """Room for one segment's bits as read and as written, without stuffing, and for where the segments lie.

    ``coders`` uint64 ``[3, 10]`` is a Coder a component, ``predictions`` int64 ``[2, 3]`` what is read and written,
    ``ratios`` int32 ``[3, 64]`` is told in Coder.
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
        np.zeros((3, 10), np.uint64),
        np.zeros((2, 3), np.int64),
        np.zeros((3, 64), np.int32),
    )


class Transcoder:
    """Rewrites JPEGs; holds the scratch of one thread. The interpreter lock is not held while it works."""

    def __init__(self) -> None:
        self._tables = new_tables(new_table_store())
        self._codes = new_codes()
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
    codes: Codes,
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
    set_coders(header, tables, codes, scratch.ratios, scratch.coders)
    coders, predictions = scratch.coders, scratch.predictions
    predictions[:, :] = 0
    blocks, luma = header.across * header.down + header.components - 1, header.across * header.down
    read, written = U(scratch.read.ctypes.data), U(scratch.written.ctypes.data)
    limit = written + U(scratch.written.size - MOST_BLOCK_BYTES)
    address, pending, count = written, U(0), U(0)
    pointer, buffer, have = read, U(0), U(0)
    until_marker, markers, segment, until_segment = interval if interval else units, 0, 0, 0
    length, copied, at_bit = 0, 0, 0  # in the segment: its bytes, bits that need not be copied any more, and the place
    for _ in range(units):
        if until_segment == 0 or until_marker == 0:
            if address + U((at_bit - copied) >> 3) > limit:
                return UNSUPPORTED, 0
            address, pending, count = copy_bits(read, copied, at_bit, address, pending, count)
            copied = at_bit
        if until_segment == 0:
            length = remove_stuffing(data, starts[segment], ends[segment], scratch.read)
            pointer, buffer, have = read, U(0), U(0)
            copied = at_bit = 0
            predictions[0, :] = 0
            until_segment = every
            segment += 1
        if until_marker == 0:
            at = put_segment(written, address, pending, count, out, at)
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
            coder = Coder(
                coders[component, 0],
                coders[component, 1],
                coders[component, 2],
                coders[component, 3],
                coders[component, 4],
                coders[component, 5],
                coders[component, 6],
                coders[component, 7],
                coders[component, 8],
                coders[component, 9],
            )
            pointer, buffer, have = refill(pointer, buffer, have)
            known, difference, buffer, have = read_difference(coder, buffer, have)
            if known == 0:
                return CORRUPT_DATA, 0
            predictions[0, component] += difference
            dc = predictions[0, component]
            if abs(dc) > _MOST_DC:
                return UNSUPPORTED, 0
            is_copied = coder.is_standard != U(0) and not coarser
            if not is_copied or dc - predictions[1, component] != difference:
                if address + U((at_bit - copied) >> 3) > limit:
                    return UNSUPPORTED, 0
                address, pending, count = copy_bits(read, copied, at_bit, address, pending, count)
                copied = np.int64(pointer - read) * 8 - np.int64(have)
                if coarser:
                    dc = rounded(dc, coder.ratios)
                difference = dc - predictions[1, component]
                size = bits_of(difference)
                if size > 11:
                    return UNSUPPORTED, 0
                code = np.int64(load_uint32(coder.dc_codes + U(size << 2)))
                bits = difference if difference >= 0 else difference + (1 << size) - 1
                address, pending, count = put(
                    U(((code >> 8) << size) | bits), U((code & 255) + size), address, pending, count
                )
            predictions[1, component] = dc
            if is_copied:
                k, pointer, buffer, have = skip_block(coder, pointer, buffer, have)
            elif coarser:
                k, pointer, buffer, have, address, pending, count = round_block(
                    coder, pointer, buffer, have, address, pending, count
                )
            else:
                k, pointer, buffer, have, address, pending, count = exchange_block(
                    coder, pointer, buffer, have, address, pending, count
                )
            if U(64) < k < U(END_OF_BLOCK):
                return CORRUPT_DATA, 0
            at_bit = np.int64(pointer - read) * 8 - np.int64(have)
            if not is_copied:
                copied = at_bit
            if at_bit > 8 * length:
                return CUT_SHORT, 0
        until_segment -= 1
        until_marker -= 1
        if until_segment == 0 and 8 * length - at_bit >= 8:
            return CORRUPT_DATA, 0
    if address + U((at_bit - copied) >> 3) > limit:
        return UNSUPPORTED, 0
    address, pending, count = copy_bits(read, copied, at_bit, address, pending, count)
    at = put_segment(written, address, pending, count, out, at)
    if at < 0:
        return UNSUPPORTED, 0
    out[at], out[at + 1] = 0xFF, 0xD9
    return OK, at + 2
