"""The kernels of :class:`rebar.jpeg.transcoder.Transcoder`: read the header, and transcode the entropy-coded data."""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.format import CORRUPT_DATA, OK, TRUNCATED, UNSUPPORTED, Header
from rebar.jpeg.kernel_arguments import Tables
from rebar.jpeg.kernels.huffman import END_OF_BLOCK, set_coders
from rebar.jpeg.kernels.jit import (
    compiled,
    copy_32_bytes,
    load_uint8,
    load_uint32,
    marker_bytes,
    store_big_endian,
    store_uint8,
    trailing_zeros,
)
from rebar.jpeg.kernels.markers import find_segments, is_end, parse_header, remove_stuffing
from rebar.jpeg.kernels.transcode_blocks import (
    MAX_BLOCK_BYTES,
    Coder,
    copy_bits,
    magnitude_bits,
    put_bits,
    read_difference,
    refill,
    requantize,
    requantize_block,
    skip_block,
    transcode_block,
)
from rebar.jpeg.transcoder import Codes, TranscodeCall, TranscodeScratch

U = np.uint64
_MAX_DC = 2047  # largest DC coefficient of 8-bit samples


@compiled
def read_header(call: TranscodeCall) -> None:
    """Parse the header into ``call.header`` and ``call.tables``, and store the status in ``call.result``."""
    status, header = parse_header(call.data, 0, call.data.size, call.tables)
    fields = call.header
    call.result[0] = status
    fields[0], fields[1], fields[2], fields[3] = header.height, header.width, header.components, header.h_samp
    fields[4], fields[5], fields[6] = header.v_samp, header.restart_interval, header.entropy_start


@compiled
def transcode(call: TranscodeCall) -> None:
    """Transcode the JPEG whose header was read last; store the status and the end of the output in ``call.result``."""
    fields, settings = call.header, call.settings
    header = Header(fields[0], fields[1], fields[2], fields[3], fields[4], fields[5], fields[6])
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
    requantized: bool,
    scratch: TranscodeScratch,
    position: int,
    out: NDArray[np.uint8],
) -> tuple[int, int]:
    """Write the entropy-coded data and EOI to ``out[position:]``; return the status and the end."""
    mcus = -(-header.width // (8 * header.h_samp)) * -(-header.height // (8 * header.v_samp))
    read_interval = header.restart_interval if header.restart_interval else mcus
    starts, ends = scratch.segments[0], scratch.segments[1]
    num_segments = -(-mcus // read_interval)
    status = find_segments(data, header.entropy_start, data.size, num_segments, starts, ends)
    if status == OK and not is_end(data, ends[num_segments - 1]):
        status = CORRUPT_DATA  # such as a marker in the middle of surplus data: libjpeg decides
    if status != OK:
        return status, 0
    set_coders(header, tables, codes, scratch.ratios, scratch.coders)
    coders, predictions = scratch.coders, scratch.predictions
    predictions[:, :] = 0
    blocks, luma = header.h_samp * header.v_samp + header.components - 1, header.h_samp * header.v_samp
    read, written = U(scratch.read.ctypes.data), U(scratch.written.ctypes.data)
    limit = written + U(scratch.written.size - MAX_BLOCK_BYTES)
    address, pending, count = written, U(0), U(0)
    pointer, buffer, available = read, U(0), U(0)
    mcus_to_marker, markers, segment, mcus_to_segment = interval if interval else mcus, 0, 0, 0
    length, bits_copied, bits_read = 0, 0, 0  # for the current segment
    for _ in range(mcus):
        if mcus_to_segment == 0 or mcus_to_marker == 0:
            if address + U((bits_read - bits_copied) >> 3) > limit:
                return UNSUPPORTED, 0
            address, pending, count = copy_bits(read, bits_copied, bits_read, address, pending, count)
            bits_copied = bits_read
        if mcus_to_segment == 0:
            length = remove_stuffing(data, starts[segment], ends[segment], scratch.read)
            pointer, buffer, available = read, U(0), U(0)
            bits_copied = bits_read = 0
            predictions[0, :] = 0
            mcus_to_segment = read_interval
            segment += 1
        if mcus_to_marker == 0:
            position = _add_stuffing(written, address, pending, count, out, position)
            if position < 0:
                return UNSUPPORTED, 0
            out[position], out[position + 1] = 0xFF, 0xD0 + markers % 8
            position += 2
            markers += 1
            address, pending, count = written, U(0), U(0)
            predictions[1, :] = 0
            mcus_to_marker = interval
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
            pointer, buffer, available = refill(pointer, buffer, available)
            code_length, difference, buffer, available = read_difference(coder, buffer, available)
            if code_length == 0:
                return CORRUPT_DATA, 0
            predictions[0, component] += difference
            dc = predictions[0, component]
            if abs(dc) > _MAX_DC:
                return UNSUPPORTED, 0
            is_copied = coder.is_standard != U(0) and not requantized
            if not is_copied or dc - predictions[1, component] != difference:
                if address + U((bits_read - bits_copied) >> 3) > limit:
                    return UNSUPPORTED, 0
                address, pending, count = copy_bits(read, bits_copied, bits_read, address, pending, count)
                bits_copied = np.int64(pointer - read) * 8 - np.int64(available)
                if requantized:
                    dc = requantize(dc, coder.ratios)
                difference = dc - predictions[1, component]
                size = magnitude_bits(difference)
                if size > 11:
                    return UNSUPPORTED, 0
                code = np.int64(load_uint32(coder.dc_codes + U(size << 2)))
                bits = difference if difference >= 0 else difference + (1 << size) - 1
                address, pending, count = put_bits(
                    U(((code >> 8) << size) | bits), U((code & 255) + size), address, pending, count
                )
            predictions[1, component] = dc
            if is_copied:
                k, pointer, buffer, available = skip_block(coder, pointer, buffer, available)
            elif requantized:
                k, pointer, buffer, available, address, pending, count = requantize_block(
                    coder, pointer, buffer, available, address, pending, count
                )
            else:
                k, pointer, buffer, available, address, pending, count = transcode_block(
                    coder, pointer, buffer, available, address, pending, count
                )
            if U(64) < k < U(END_OF_BLOCK):
                return CORRUPT_DATA, 0
            bits_read = np.int64(pointer - read) * 8 - np.int64(available)
            if not is_copied:
                bits_copied = bits_read
            if bits_read > 8 * length:
                return TRUNCATED, 0
        mcus_to_segment -= 1
        mcus_to_marker -= 1
        if mcus_to_segment == 0 and 8 * length - bits_read >= 8:
            return CORRUPT_DATA, 0
    if address + U((bits_read - bits_copied) >> 3) > limit:
        return UNSUPPORTED, 0
    address, pending, count = copy_bits(read, bits_copied, bits_read, address, pending, count)
    position = _add_stuffing(written, address, pending, count, out, position)
    if position < 0:
        return UNSUPPORTED, 0
    out[position], out[position + 1] = 0xFF, 0xD9
    return OK, position + 2


@compiled
def _add_stuffing(
    written: np.uint64, address: np.uint64, pending: np.uint64, count: np.uint64, out: NDArray[np.uint8], position: int
) -> int:
    """Write a segment to ``out[position:]`` with a zero byte after each 0xFF; return its end, or -1 if it does not fit.

    The segment is at addresses ``written`` to ``address``; ``count`` pending bits follow, padded with ones.
    """
    if count:
        store_big_endian(address, pending | (U(0xFFFFFFFFFFFFFFFF) >> count))
        address += U(1)
    length = np.int64(address - written)
    if position + 2 * length + 64 > out.size:
        return -1
    target, done = U(out.ctypes.data) + U(position), 0
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
