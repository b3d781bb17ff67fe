"""A region of a JPEG to the YCbCr planes that cover it, without decoding what lies elsewhere.

Entropy-coded data must be read from a segment's start. With restart markers only the segments that meet the
region are read; without them, everything down to the region's last row. Blocks outside are not transformed.
"""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.kernels.entropy import (
    BLOCK,
    COUNT,
    bits_left,
    decode_one,
    decode_two,
    expect_blocks,
    open_lane,
    went_wrong,
)
from rebar.jpeg.kernels.huffman import SLOT_SHIFT
from rebar.jpeg.kernels.idct import Target, dequantize_and_idct
from rebar.jpeg.kernels.jit import compiled
from rebar.jpeg.kernels.segments import find_segments, remove_stuffing
from rebar.jpeg.status import CORRUPT_DATA, OK, TRUNCATED, WRONG_SIZE, Header
from rebar.jpeg.workspace import ALIGNMENT, CHUNK, LANES, RegionScratch, Tables

U = np.uint64
# A lane's work, int64: the unit its coefficients start with, how many they are, where its segment's part that is
# needed ends, and whether the segment ends there too.
_UNIT, _UNITS, _STOP, _WHOLE = range(4)


@compiled
def decode_region(
    data: NDArray[np.uint8], end: int, header: Header, tables: Tables, scratch: RegionScratch, bits: NDArray[np.uint8]
) -> int:
    """Decode the samples ``scratch.needed``; returns a status.

    ``bits`` uint8 ``[2, ...]`` is as long as the file's bytes and BITS_ROOM. The image fits ``scratch``, and
    ``needed`` lies within it: the caller looks after that.
    """
    units_wide = -(-header.width // (8 * header.h_samp))
    units_high = -(-header.height // (8 * header.v_samp))
    left, right, top, bottom = _units_needed(header, scratch)
    for c in range(header.components):
        h_samp, v_samp = (header.h_samp, header.v_samp) if c == 0 else (1, 1)
        stride = ((bottom - top) * 8 * v_samp + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        scratch.frame[c, 0], scratch.frame[c, 1], scratch.frame[c, 2] = left * 8 * h_samp, top * 8 * v_samp, stride
        if (right - left) * 8 * h_samp * stride > scratch.planes.shape[1]:
            return WRONG_SIZE
    interval = header.restart_interval
    if interval == 0 or interval > units_wide * units_high:
        interval = units_wide * units_high
    first = (top * units_wide + left) // interval
    last = ((bottom - 1) * units_wide + right - 1) // interval
    status, found = find_segments(data, header.entropy_start, end, last + 1, scratch.starts, scratch.ends)
    if found <= last and header.restart_interval != 0:
        return TRUNCATED if status == OK else status
    if found == 0:  # no marker behind the only segment: the image's end is cut off, perhaps not our part
        scratch.ends[0] = end
    _schedule(header, tables, scratch)
    region = (left, right, top, bottom)
    status = _decode_segments(data, header, tables, scratch, bits, first, last, interval, region)
    if status != OK:
        scratch.coefficients[:, :] = 0  # what was decoded and not transformed
    return status


@compiled
def _units_needed(header: Header, scratch: RegionScratch) -> tuple[int, int, int, int]:
    """The units (left, right, top, bottom; half-open) that hold what every component needs."""
    left, right, top, bottom = 1 << 30, 0, 1 << 30, 0
    for c in range(header.components):
        wide, high = (8 * header.h_samp, 8 * header.v_samp) if c == 0 else (8, 8)
        left = min(left, scratch.needed[c, 0] // wide)
        right = max(right, -(-scratch.needed[c, 1] // wide))
        top = min(top, scratch.needed[c, 2] // high)
        bottom = max(bottom, -(-scratch.needed[c, 3] // high))
    return left, right, top, bottom


@compiled
def _last_needed(start: int, stop: int, units_wide: int, left: int, right: int, top: int, bottom: int) -> int:
    """Behind the last unit of ``start`` to ``stop`` (in reading order) inside the region; ``start`` if none is."""
    row = min((stop - 1) // units_wide, bottom - 1)
    while row >= top and (row + 1) * units_wide > start:
        begin, behind = max(start, row * units_wide + left), min(stop, row * units_wide + right)
        if begin < behind:
            return behind
        row -= 1
    return start


@compiled
def _schedule(header: Header, tables: Tables, scratch: RegionScratch) -> None:
    """Write down which tables each block of a chunk is coded with."""
    luma, short = header.h_samp * header.v_samp, U(tables.store.short.ctypes.data)
    blocks = luma + header.components - 1
    for i in range(CHUNK * blocks + 1):
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
    """Decode what the region (in units) needs of the segments ``first`` to ``last``; returns a status."""
    left, right, top, bottom = region
    h_samp, v_samp, gray = header.h_samp, header.v_samp, header.components == 1
    units_wide = -(-header.width // (8 * h_samp))
    total = units_wide * -(-header.height // (8 * v_samp))
    blocks = h_samp * v_samp + header.components - 1
    luma = _target(tables, scratch, 0)
    blue, red = (luma, luma) if gray else (_target(tables, scratch, 1), _target(tables, scratch, 2))
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
            unit, units, stop = work[lane, _UNIT], work[lane, _UNITS], work[lane, _STOP]
            if units > 0:
                dequantize_and_idct(
                    coefficients0 if lane == 0 else coefficients1,
                    ends0 if lane == 0 else ends1,
                    unit,
                    units,
                    units_wide,
                    h_samp,
                    v_samp,
                    luma,
                    blue,
                    red,
                    gray,
                    scratch.predictions[lane],
                )
                unit += units
                if unit == stop:
                    status = _check_end(lanes[lane], work[lane, _WHOLE] != 0)
                    if status != OK:
                        return status
            while unit == stop and segment <= last:
                unit, behind = segment * interval, min(segment * interval + interval, total)
                stop = _last_needed(unit, behind, units_wide, left, right, top, bottom)
                if stop > unit:
                    length = remove_stuffing(data, scratch.starts[segment], scratch.ends[segment], bits[lane])
                    open_lane(lanes[lane], U(bits[lane].ctypes.data), length)
                    work[lane, _STOP], work[lane, _WHOLE] = stop, stop == behind
                    scratch.predictions[lane, :] = 0
                segment += 1
            units = min(CHUNK, stop - unit)
            work[lane, _UNIT], work[lane, _UNITS] = unit, units
            expect_blocks(lanes[lane], units * blocks)
        busy0, busy1 = work[0, _UNITS] > 0, work[1, _UNITS] > 0
        if busy0 and busy1:
            decode_two(lanes, dc_tables, ac_tables, short, long, coefficients0, coefficients1, ends0, ends1)
        elif busy0:
            decode_one(lanes[0], dc_tables, ac_tables, short, long, coefficients0, ends0)
        elif busy1:
            decode_one(lanes[1], dc_tables, ac_tables, short, long, coefficients1, ends1)
        else:
            return OK


@compiled
def _check_end(lane: NDArray[np.uint64], whole: bool) -> int:
    """Whether a lane that has all it needs of its segment, or ``whole`` of it, read what a segment holds."""
    left_over = bits_left(lane)
    if went_wrong(lane) or (whole and left_over >= 8):
        return CORRUPT_DATA
    return OK if left_over >= 0 else TRUNCATED


@compiled
def _target(tables: Tables, scratch: RegionScratch, component: int) -> Target:
    needed, frame = scratch.needed, scratch.frame
    stride = frame[component, 2]
    plane = U(scratch.planes.ctypes.data) + U(component * scratch.planes.shape[1])
    return Target(
        plane - U(frame[component, 0] * stride + frame[component, 1]),
        stride,
        needed[component, 0] // 8,
        -(-needed[component, 1] // 8),
        needed[component, 2] // 8,
        -(-needed[component, 3] // 8),
        U(tables.quantization.ctypes.data) + U(128 * tables.components[component, 3]),
    )
