"""YCbCr planes to an RGB picture of any size: columns weighed, rows weighed, colours converted.

Everything is 8.8 fixed point in 16 bits. The planes lie column by column, so the columns of eight output
pixels are summed for sixteen rows at once, and stored transposed, row by row. Then each output row is summed
and converted. Weights come from :mod:`rebar.jpeg.taps`; a mirrored picture has its column weights mirrored.

Colours: ITU-R BT.601, full range, as JFIF says.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from rebar.jpeg.compiled import compiled
from rebar.jpeg.regions import SURPLUS
from rebar.jpeg.taps import TILE, Taps
from rebar.jpeg.vectors import (
    I8,
    I16,
    I32,
    I64,
    Builder,
    Value,
    broadcast,
    clamp_to_byte,
    constant,
    load,
    load_scalar,
    load_uint8,
    offset,
    operation,
    shuffle,
    step,
    store,
    store_uint8,
    transpose8,
    vector,
)

U = np.uint64
_ROWS = 16  # made together by weigh_columns
_LANES = 32  # pixels made together by weigh_row
_PIXELS = 16  # converted together
NEUTRAL = 128 << 8  # chroma of gray


def _summed(
    builder: Builder, count: Value, start: Sequence[Value], body: Callable[[Value, Sequence[Value]], Sequence[Value]]
) -> list[Value]:
    """``for tap in range(count): sums = body(tap, sums)``; ``count`` is at least one."""
    before = builder.block
    loop, behind = builder.append_basic_block("tap"), builder.append_basic_block("behind")
    builder.branch(loop)
    builder.position_at_end(loop)
    tap = builder.phi(I64)
    tap.add_incoming(ir.Constant(I64, 0), before)
    sums = [builder.phi(value.type) for value in start]
    for phi, value in zip(sums, start, strict=True):
        phi.add_incoming(value, before)
    updated = body(tap, sums)
    following = builder.add(tap, ir.Constant(I64, 1))
    tap.add_incoming(following, builder.block)
    for phi, value in zip(sums, updated, strict=True):
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_unsigned("<", following, count), loop, behind)
    builder.position_at_end(behind)
    return list(updated)


@operation(8)
def weigh_columns(
    builder: Builder,
    plane: Value,
    stride: Value,
    firsts: Value,
    weights: Value,
    pitch: Value,
    count: Value,
    out: Value,
    out_pitch: Value,
) -> None:
    """Eight output columns of sixteen rows, from ``count`` columns of bytes each.

    ``plane`` is where column 0's sixteen bytes start, ``firsts`` int64 ``[8]`` counts columns from there;
    ``weights`` uint16 in rows ``pitch`` bytes apart. Stored as sixteen rows of eight uint16.
    """
    columns = []
    for i in range(TILE):
        first = load_scalar(builder, offset(builder, firsts, 8 * i), I64)
        columns.append(builder.add(plane, builder.mul(first, stride)))
    weight_rows = [step(builder, weights, pitch, i) for i in range(TILE)]

    def add_tap(tap: Value, sums: Sequence[Value]) -> Sequence[Value]:
        along, double = builder.mul(tap, stride), builder.add(tap, tap)
        updated = []
        for column, weight_row, total in zip(columns, weight_rows, sums, strict=True):
            samples = builder.zext(load(builder, builder.add(column, along), I8, _ROWS), vector(I16, _ROWS))
            weight = load_scalar(builder, builder.add(weight_row, double), I16)
            updated.append(builder.add(total, builder.mul(samples, broadcast(builder, weight, _ROWS))))
        return updated

    sums = _summed(builder, count, [constant(I16, _ROWS, 0)] * TILE, add_tap)
    for half in range(_ROWS // 8):
        rows = [shuffle(builder, total, total, range(8 * half, 8 * half + 8)) for total in sums]
        for y, row in enumerate(transpose8(builder, rows)):
            store(builder, row, step(builder, out, out_pitch, 8 * half + y))


@operation(5)
def weigh_row(builder: Builder, lines: Value, pitch: Value, weights: Value, count: Value, out: Value) -> None:
    """32 pixels of an output row, uint16, from ``count`` lines of uint16, ``pitch`` bytes apart."""
    wide = vector(I32, _LANES)

    def add_tap(tap: Value, sums: Sequence[Value]) -> Sequence[Value]:
        samples = builder.zext(load(builder, builder.add(lines, builder.mul(tap, pitch)), I16, _LANES), wide)
        weight = load_scalar(builder, builder.add(weights, builder.add(tap, tap)), I16)
        product = builder.mul(samples, builder.zext(broadcast(builder, weight, _LANES), wide))
        high = builder.trunc(builder.lshr(product, constant(I32, _LANES, 16)), vector(I16, _LANES))
        return [builder.add(sums[0], high)]

    # Each tap drops the product's low half: half a step on average.
    half = builder.trunc(builder.lshr(count, ir.Constant(I64, 1)), I16)
    start = builder.select(builder.icmp_unsigned(">", half, ir.Constant(I16, 128)), ir.Constant(I16, 128), half)
    (total,) = _summed(builder, count, [broadcast(builder, start, _LANES)], add_tap)
    store(builder, total, out)


@operation(4)
def convert_colours(builder: Builder, luma: Value, blue: Value, red: Value, out: Value) -> None:
    """Sixteen pixels of Y, Cb and Cr, uint16 8.8, to 48 bytes RGB.

    Sums are kept in 10.6, so that they fit 16 bits; each product loses half a step on average.
    """
    lanes = _PIXELS
    narrow, wide = vector(I16, lanes), vector(I32, lanes)

    def times(value: Value, factor: float) -> Value:
        product = builder.mul(builder.sext(value, wide), constant(I32, lanes, round(factor * (1 << 14))))
        return builder.trunc(builder.lshr(product, constant(I32, lanes, 16)), narrow)

    def to_bytes(total: Value, products: int) -> Value:
        rounded = builder.add(total, constant(I16, lanes, 32 + (products + 1) // 2))
        return builder.trunc(clamp_to_byte(builder, builder.ashr(rounded, constant(I16, lanes, 6))), vector(I8, lanes))

    y = builder.lshr(load(builder, luma, I16, lanes), constant(I16, lanes, 2))
    u, v = (builder.sub(load(builder, a, I16, lanes), constant(I16, lanes, NEUTRAL)) for a in (blue, red))
    r = to_bytes(builder.add(y, times(v, 1.402)), 1)
    g = to_bytes(builder.sub(builder.sub(y, times(u, 0.344136)), times(v, 0.714136)), -2)
    b = to_bytes(builder.add(y, times(u, 1.772)), 1)
    both = [shuffle(builder, first, second, range(2 * lanes)) for first, second in ((r, g), (b, b))]
    interleaved = [channel * lanes + i for i in range(lanes) for channel in range(3)]
    store(builder, shuffle(builder, both[0], both[1], interleaved), out)


class ResampleScratch(NamedTuple):
    """``lines`` uint16 ``[3, capacity]``: each component resized along x, row by row, ``pitch`` apart;
    ``row`` uint16 ``[3, pitch]``; ``pixels`` uint8 ``[48]`` for rows shorter than that."""

    lines: NDArray[np.uint16]
    row: NDArray[np.uint16]
    pixels: NDArray[np.uint8]


def new_resample_scratch(out_width: int, max_height: int) -> ResampleScratch:
    """Room to make pictures ``out_width`` wide from regions of pictures up to ``max_height``."""
    pitch = -(-out_width // _LANES) * _LANES
    rows = -(-max_height // 16) * 16 + _ROWS + SURPLUS
    return ResampleScratch(
        np.zeros((3, rows * pitch), np.uint16), np.full((3, pitch), NEUTRAL, np.uint16), np.zeros(48, np.uint8)
    )


@compiled
def resize_columns(
    plane: NDArray[np.uint8],
    stride: int,
    top: int,
    bottom: int,
    taps: Taps,
    lines: NDArray[np.uint16],
    pitch: int,
) -> None:
    """Resize the rows ``top`` to ``bottom`` of a plane along x, into the same rows of ``lines``."""
    begin = top // _ROWS * _ROWS
    weights, weight_pitch = U(taps.weights.ctypes.data), U(taps.weights.strides[0])
    firsts, source, target = U(taps.first.ctypes.data), U(plane.ctypes.data), U(lines.ctypes.data)
    for x in range(0, taps.first.size, TILE):
        for y in range(begin, bottom, _ROWS):
            weigh_columns(
                source + U(y),
                U(stride),
                firsts + U(8 * x),
                weights + U(x) * weight_pitch,
                weight_pitch,
                U(taps.span[2]),
                target + U(2 * (y * pitch + x)),
                U(2 * pitch),
            )


@compiled
def resize_row(lines: np.uint64, pitch: int, taps: Taps, y: int, row: np.uint64) -> None:
    """Output row ``y`` of one component from its ``lines`` (addresses, as below)."""
    source = lines + U(2 * taps.first[y] * pitch)
    weights = U(taps.weights.ctypes.data) + U(y * taps.weights.strides[0])
    for x in range(0, pitch, _LANES):
        weigh_row(source + U(2 * x), U(2 * pitch), weights, U(taps.span[2]), row + U(2 * x))


@compiled
def write_row(row: np.uint64, pitch: int, pixels: np.uint64, out: np.uint64, width: int) -> None:
    """Convert a row's three components, ``pitch`` apart, to ``width`` pixels RGB, and not a byte beyond.

    In addresses: a view of an array costs more than sixteen pixels do.
    """
    blue, red = row + U(2 * pitch), row + U(4 * pitch)
    if width < _PIXELS:
        convert_colours(row, blue, red, pixels)
        for i in range(3 * width):
            store_uint8(out + U(i), load_uint8(pixels + U(i)))
        return
    for group in range(0, width, _PIXELS):
        x = min(group, width - _PIXELS)  # the last group overlaps the one before
        convert_colours(row + U(2 * x), blue + U(2 * x), red + U(2 * x), out + U(3 * x))
