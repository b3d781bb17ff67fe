"""The kernel of :class:`rebar.jpeg.crop_decoder.CropDecoder`: decode, crop, resize and flip one JPEG after another.

Only the region that a crop needs is decoded. Entropy decoding starts at the start of a segment. With restart markers,
only the segments that intersect the region are decoded; without them, all data up to the region's last row. Blocks
outside the region skip the inverse DCT.
"""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.format import CORRUPT_DATA, OK, TRUNCATED, WRONG_SIZE, Header
from rebar.jpeg.kernel_arguments import (
    ALIGNMENT,
    CHUNK_MCUS,
    LANES,
    Call,
    RegionScratch,
    Tables,
    Workspace,
)
from rebar.jpeg.kernels.entropy import (
    BLOCK,
    COUNT,
    bits_left,
    decode_lane,
    decode_lane_pair,
    has_error,
    start_chunk,
    start_lane,
)
from rebar.jpeg.kernels.huffman import SLOT_SHIFT
from rebar.jpeg.kernels.idct import Target, dequantize_and_idct
from rebar.jpeg.kernels.jit import compiled
from rebar.jpeg.kernels.markers import find_segments, has_end, is_end, parse_header, remove_stuffing
from rebar.jpeg.kernels.resize import resize
from rebar.jpeg.kernels.resize_weights import set_axis_weights

U = np.uint64
# Fields of a lane's work, int64: the first MCU of its coefficients, their number, the end of the needed part of its
# segment, and whether that is the end of the segment.
_MCU, _MCUS, _STOP, _COMPLETE = range(4)


@compiled
def decode_crops(call: Call, workspace: Workspace) -> None:
    """Decode all crops of a call and store their statuses in ``call.statuses``."""
    for i in range(call.starts.size):
        call.statuses[i] = _decode_crop(call, i, workspace)


@compiled
def _decode_crop(call: Call, i: int, workspace: Workspace) -> int:
    tables, region, weights = workspace.tables, workspace.region, workspace.weights
    end, box, out = call.ends[i], call.boxes[i], call.out[i]
    status, header = parse_header(call.data, call.starts[i], end, tables)
    if status != OK:
        return status
    if not _fits(header, call.shapes[i], box, region):
        return WRONG_SIZE
    if not has_end(call.data, header.entropy_start, end):
        return TRUNCATED  # although the crop may be complete: other decoders refuse the image too
    set_axis_weights(weights, header, box, call.flips[i], out.shape[0], out.shape[1])
    for c in range(header.components):
        x, y = (weights.luma_x, weights.luma_y) if c == 0 else (weights.chroma_x, weights.chroma_y)
        region.needed[c, 0], region.needed[c, 1] = x.span[0], x.span[1]
        region.needed[c, 2], region.needed[c, 3] = y.span[0], y.span[1]
    status = decode_region(call.data, end, header, tables, region, workspace.bits)
    if status == OK:
        resize(header, region, weights, workspace.resize, out)
    return status


@compiled
def _fits(header: Header, shape: NDArray[np.int64], box: NDArray[np.int64], region: RegionScratch) -> bool:
    """Return whether the image has the expected shape and fits the scratch memory, and the box is inside the image."""
    if shape[0] != 0 and (header.height != shape[0] or header.width != shape[1]):
        return False
    top, left, height, width = box[0], box[1], box[2], box[3]
    if header.height > region.max_size[0] or header.width > region.max_size[1]:
        return False
    if not (0 <= top < header.height and 0 <= left < header.width):
        return False
    return 1 <= height <= header.height - top and 1 <= width <= header.width - left


@compiled
def decode_region(
    data: NDArray[np.uint8], end: int, header: Header, tables: Tables, scratch: RegionScratch, bits: NDArray[np.uint8]
) -> int:
    """Decode the samples ``scratch.needed``; return a status.

    ``bits`` uint8 ``[2, ...]`` is as long as the file plus BITS_MARGIN. The caller ensures that the image fits
    ``scratch`` and contains ``needed``.
    """
    mcus_per_row = -(-header.width // (8 * header.h_samp))
    mcu_rows = -(-header.height // (8 * header.v_samp))
    left, right, top, bottom = _mcus_needed(header, scratch)
    for c in range(header.components):
        h_samp, v_samp = (header.h_samp, header.v_samp) if c == 0 else (1, 1)
        stride = ((bottom - top) * 8 * v_samp + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        scratch.layout[c, 0], scratch.layout[c, 1], scratch.layout[c, 2] = left * 8 * h_samp, top * 8 * v_samp, stride
        if (right - left) * 8 * h_samp * stride > scratch.planes.shape[1]:
            return WRONG_SIZE
    interval = header.restart_interval
    if interval == 0 or interval > mcus_per_row * mcu_rows:
        interval = mcus_per_row * mcu_rows
    first = (top * mcus_per_row + left) // interval
    last = ((bottom - 1) * mcus_per_row + right - 1) // interval
    status = find_segments(data, header.entropy_start, end, last + 1, scratch.starts, scratch.ends)
    if status != OK:
        return status
    is_last = last + 1 == -(-mcus_per_row * mcu_rows // interval)
    if is_last and not is_end(data, scratch.ends[last]):
        return CORRUPT_DATA  # such as a marker in surplus data: libjpeg decides
    _assign_tables(header, tables, scratch)
    region = (left, right, top, bottom)
    status = _decode_segments(data, header, tables, scratch, bits, first, last, interval, region)
    if status != OK:
        scratch.coefficients[:, :] = 0  # coefficients that were decoded, but not transformed
    return status


@compiled
def _mcus_needed(header: Header, scratch: RegionScratch) -> tuple[int, int, int, int]:
    """Return the MCUs (left, right, top, bottom; half-open) that cover the needed samples of all components."""
    left, right, top, bottom = 1 << 30, 0, 1 << 30, 0
    for c in range(header.components):
        mcu_width, mcu_height = (8 * header.h_samp, 8 * header.v_samp) if c == 0 else (8, 8)
        left = min(left, scratch.needed[c, 0] // mcu_width)
        right = max(right, -(-scratch.needed[c, 1] // mcu_width))
        top = min(top, scratch.needed[c, 2] // mcu_height)
        bottom = max(bottom, -(-scratch.needed[c, 3] // mcu_height))
    return left, right, top, bottom


@compiled
def _last_needed(start: int, stop: int, mcus_per_row: int, left: int, right: int, top: int, bottom: int) -> int:
    """Return the end of the last MCU from ``start`` to ``stop`` (in scan order) in the region, or ``start``."""
    row = min((stop - 1) // mcus_per_row, bottom - 1)
    while row >= top and (row + 1) * mcus_per_row > start:
        begin, end = max(start, row * mcus_per_row + left), min(stop, row * mcus_per_row + right)
        if begin < end:
            return end
        row -= 1
    return start


@compiled
def _assign_tables(header: Header, tables: Tables, scratch: RegionScratch) -> None:
    """Store the addresses of the Huffman tables of each block in a chunk."""
    luma, short = header.h_samp * header.v_samp, U(tables.store.short.ctypes.data)
    blocks = luma + header.components - 1
    for i in range(CHUNK_MCUS * blocks + 1):
        component = max(i % blocks - luma + 1, 0)
        scratch.dc_tables[i] = short + U(tables.components[component, 4] << SLOT_SHIFT)
        scratch.ac_tables[i] = short + U(tables.components[component, 5] << SLOT_SHIFT)


@compiled
def _decode_segments(
    data: NDArray[np.uint8],
    header: Header,
    tables: Tables,
    scratch: RegionScratch,
    bits: NDArray[np.uint8],
    first: int,
    last: int,
    interval: int,
    region: tuple[int, int, int, int],
) -> int:
    """Decode the parts of the segments ``first`` to ``last`` that the region (in MCUs) needs; return a status."""
    left, right, top, bottom = region
    h_samp, v_samp, gray = header.h_samp, header.v_samp, header.components == 1
    mcus_per_row = -(-header.width // (8 * h_samp))
    total = mcus_per_row * -(-header.height // (8 * v_samp))
    blocks = h_samp * v_samp + header.components - 1
    luma = _target(tables, scratch, 0)
    cb, cr = (luma, luma) if gray else (_target(tables, scratch, 1), _target(tables, scratch, 2))
    short, long = U(tables.store.short.ctypes.data), U(tables.store.long.ctypes.data)
    coefficients0, coefficients1 = U(scratch.coefficients[0].ctypes.data), U(scratch.coefficients[1].ctypes.data)
    ends0, ends1 = U(scratch.block_ends[0].ctypes.data), U(scratch.block_ends[1].ctypes.data)
    dc_tables, ac_tables = scratch.dc_tables, scratch.ac_tables
    lanes, work, segment = scratch.lanes, scratch.work, first
    lanes[:, :] = 0
    work[:, :] = 0
    while True:
        for lane in range(LANES):
            if lanes[lane, BLOCK] != lanes[lane, COUNT]:
                continue
            mcu, mcus, stop = work[lane, _MCU], work[lane, _MCUS], work[lane, _STOP]
            if mcus > 0:
                dequantize_and_idct(
                    coefficients0 if lane == 0 else coefficients1,
                    ends0 if lane == 0 else ends1,
                    mcu,
                    mcus,
                    mcus_per_row,
                    h_samp,
                    v_samp,
                    luma,
                    cb,
                    cr,
                    gray,
                    scratch.predictions[lane],
                )
                mcu += mcus
                if mcu == stop:
                    status = _check_end(lanes[lane], work[lane, _COMPLETE] != 0)
                    if status != OK:
                        return status
            while mcu == stop and segment <= last:
                mcu, end = segment * interval, min(segment * interval + interval, total)
                stop = _last_needed(mcu, end, mcus_per_row, left, right, top, bottom)
                if stop > mcu:
                    length = remove_stuffing(data, scratch.starts[segment], scratch.ends[segment], bits[lane])
                    start_lane(lanes[lane], U(bits[lane].ctypes.data), length)
                    work[lane, _STOP], work[lane, _COMPLETE] = stop, stop == end
                    scratch.predictions[lane, :] = 0
                segment += 1
            mcus = min(CHUNK_MCUS, stop - mcu)
            work[lane, _MCU], work[lane, _MCUS] = mcu, mcus
            start_chunk(lanes[lane], mcus * blocks)
        busy0, busy1 = work[0, _MCUS] > 0, work[1, _MCUS] > 0
        if busy0 and busy1:
            decode_lane_pair(lanes, dc_tables, ac_tables, short, long, coefficients0, coefficients1, ends0, ends1)
        elif busy0:
            decode_lane(lanes[0], dc_tables, ac_tables, short, long, coefficients0, ends0)
        elif busy1:
            decode_lane(lanes[1], dc_tables, ac_tables, short, long, coefficients1, ends1)
        else:
            return OK


@compiled
def _check_end(lane: NDArray[np.uint64], complete: bool) -> int:
    """Return the status of a lane that has read the needed part of its segment, or the ``complete`` segment."""
    unread = bits_left(lane)
    if has_error(lane) or (complete and unread >= 8):
        return CORRUPT_DATA
    return OK if unread >= 0 else TRUNCATED


@compiled
def _target(tables: Tables, scratch: RegionScratch, component: int) -> Target:
    needed, layout = scratch.needed, scratch.layout
    stride = layout[component, 2]
    plane = U(scratch.planes.ctypes.data) + U(component * scratch.planes.shape[1])
    return Target(
        plane - U(layout[component, 0] * stride + layout[component, 1]),
        stride,
        needed[component, 0] // 8,
        -(-needed[component, 1] // 8),
        needed[component, 2] // 8,
        -(-needed[component, 3] // 8),
        U(tables.quantization.ctypes.data) + U(128 * tables.components[component, 3]),
    )
