"""The kernels that :class:`rebar.jpeg.transcoder.Transcoder` runs.

Imported only where they are compiled (:mod:`rebar.jpeg.kernel_cache`).
"""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.kernels.bit_writer import copy_bits, put, put_segment
from rebar.jpeg.kernels.headers import parse_header
from rebar.jpeg.kernels.huffman import END_OF_BLOCK
from rebar.jpeg.kernels.jit import compiled
from rebar.jpeg.kernels.segments import find_segments, remove_stuffing
from rebar.jpeg.kernels.simd import load_uint32
from rebar.jpeg.kernels.transcode_blocks import (
    MOST_BLOCK_BYTES,
    Coder,
    bits_of,
    exchange_block,
    read_difference,
    refill,
    round_block,
    rounded,
    skip_block,
)
from rebar.jpeg.kernels.transcode_tables import set_coders
from rebar.jpeg.status import CORRUPT_DATA, OK, TRUNCATED, UNSUPPORTED, Header
from rebar.jpeg.transcode_workspace import Codes, TranscodeScratch, Transcoding
from rebar.jpeg.workspace import Tables

U = np.uint64
_MOST_DC = 2047  # what a coefficient of 8-bit samples may be


@compiled
def read_header(call: Transcoding) -> None:
    """Fill ``call.header`` and ``call.tables``, the status into ``call.result``."""
    status, header = parse_header(call.data, 0, call.data.size, call.tables)
    found = call.header
    call.result[0] = status
    found[0], found[1], found[2], found[3] = header.height, header.width, header.components, header.h_samp
    found[4], found[5], found[6] = header.v_samp, header.restart_interval, header.entropy_start


@compiled
def transcode(call: Transcoding) -> None:
    """Write the JPEG whose header was read last."""
    found, settings = call.header, call.settings
    header = Header(found[0], found[1], found[2], found[3], found[4], found[5], found[6])
    call.result[0], call.result[1] = _write(
        call.data,
        header,
        call.tables,
        call.codes,
        settings[0],
        settings[1] != 0,
        call.scratch,
        settings[2],
        call.out,
    )


@compiled
def _write(
    data: NDArray[np.uint8],
    header: Header,
    tables: Tables,
    codes: Codes,
    interval: int,
    coarser: bool,
    scratch: TranscodeScratch,
    at: int,
    out: NDArray[np.uint8],
) -> tuple[int, int]:
    """``(status, end)``: the entropy-coded data and EOI to ``out`` from ``at`` on."""
    units = -(-header.width // (8 * header.h_samp)) * -(-header.height // (8 * header.v_samp))
    every = header.restart_interval if header.restart_interval else units
    starts, ends = scratch.segments[0], scratch.segments[1]
    status, _ = find_segments(data, header.entropy_start, data.size, -(-units // every), starts, ends)
    if status != OK:
        return status, 0
    set_coders(header, tables, codes, scratch.ratios, scratch.coders)
    coders, predictions = scratch.coders, scratch.predictions
    predictions[:, :] = 0
    blocks, luma = header.h_samp * header.v_samp + header.components - 1, header.h_samp * header.v_samp
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
                return TRUNCATED, 0
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
