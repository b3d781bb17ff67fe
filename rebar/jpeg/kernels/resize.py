"""Convert YCbCr planes to an RGB image of any size: weight columns, weight rows, convert colors.

All arithmetic is 8.8 fixed point in 16 bits. The planes are column-major, so the columns of eight output pixels are
summed for 32 rows at once and stored transposed, row by row. Then 32 pixels of an output row are summed and converted
without leaving the registers. Weights come from :mod:`rebar.jpeg.kernels.resize_weights`. For a horizontal flip, the
column weights are reversed.
"""

from collections.abc import Callable, Sequence

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from rebar.jpeg.kernels.jit import compiled
from rebar.jpeg.kernels.simd import (
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
    offset,
    operation,
    shuffle,
    step,
    store,
    transpose8,
    vector,
)
from rebar.jpeg.workspace import PIXELS, ROWS, TILE, ResizeWeights

U = np.uint64
NEUTRAL = 128 << 8  # chroma of gray


def _summed(
    builder: Builder, count: Value, start: Sequence[Value], body: Callable[[Value, Sequence[Value]], Sequence[Value]]
) -> list[Value]:
    """``for tap in range(count): sums = body(tap, sums)``."""
    before = builder.block
    head, loop, behind = (builder.append_basic_block(name) for name in ("head", "tap", "behind"))
    builder.branch(head)
    builder.position_at_end(head)
    tap = builder.phi(I64)
    tap.add_incoming(ir.Constant(I64, 0), before)
    sums = [builder.phi(value.type) for value in start]
    for phi, value in zip(sums, start, strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_unsigned("<", tap, count), loop, behind)
    builder.position_at_end(loop)
    updated = body(tap, sums)
    tap.add_incoming(builder.add(tap, ir.Constant(I64, 1)), builder.block)
    for phi, value in zip(sums, updated, strict=True):
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(behind)
    return sums


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
    """Eight output columns of 32 rows, from ``count`` columns of bytes each.

    ``plane`` is where column 0's 32 bytes start, ``firsts`` int64 ``[8]`` counts columns from there;
    ``weights`` uint16 ``[8]`` of each of them, ``pitch`` bytes apart. Stored as 32 rows of eight uint16.
    """
    columns = []
    for i in range(TILE):
        first = load_scalar(builder, offset(builder, firsts, 8 * i), I64)
        columns.append(builder.add(plane, builder.mul(first, stride)))

    def add_tap(tap: Value, sums: Sequence[Value]) -> Sequence[Value]:
        along, tap_weights = builder.mul(tap, stride), builder.add(weights, builder.mul(tap, pitch))
        updated = []
        for i, (column, total) in enumerate(zip(columns, sums, strict=True)):
            samples = builder.zext(load(builder, builder.add(column, along), I8, ROWS), vector(I16, ROWS))
            weight = load_scalar(builder, offset(builder, tap_weights, 2 * i), I16)
            updated.append(builder.add(total, builder.mul(samples, broadcast(builder, weight, ROWS))))
        return updated

    sums = _summed(builder, count, [constant(I16, ROWS, 0)] * TILE, add_tap)
    for i, rows in enumerate(transpose8(builder, sums)):
        for part in range(ROWS // 8):
            row = shuffle(builder, rows, rows, range(8 * part, 8 * part + 8))
            store(builder, row, step(builder, out, out_pitch, 8 * part + i))


def _weighed_rows(
    builder: Builder, lines: Sequence[Value], pitch: Value, weights: Value, weight_pitch: Value, count: Value
) -> Sequence[Value]:
    """32 pixels of an output row of each component, from ``count`` of its lines; NEUTRAL of none."""
    wide = vector(I32, PIXELS)

    def add_tap(tap: Value, sums: Sequence[Value]) -> Sequence[Value]:
        along = builder.mul(tap, pitch)
        scalar = load_scalar(builder, builder.add(weights, builder.mul(tap, weight_pitch)), I16)
        weight = builder.zext(broadcast(builder, scalar, PIXELS), wide)
        updated = []
        for line, total in zip(lines, sums, strict=True):
            samples = builder.zext(load(builder, builder.add(line, along), I16, PIXELS), wide)
            high = builder.lshr(builder.mul(samples, weight), constant(I32, PIXELS, 16))
            updated.append(builder.add(total, builder.trunc(high, vector(I16, PIXELS))))
        return updated

    # Each tap drops the product's low half: half a step on average.
    half, most = builder.lshr(count, ir.Constant(I64, 1)), ir.Constant(I64, 128)
    start = builder.select(builder.icmp_unsigned(">", half, most), most, half)
    nothing = builder.icmp_unsigned("==", count, ir.Constant(I64, 0))
    start = builder.trunc(builder.select(nothing, ir.Constant(I64, NEUTRAL), start), I16)
    return _summed(builder, count, [broadcast(builder, start, PIXELS)] * len(lines), add_tap)


def _converted(builder: Builder, luma: Value, blue: Value, red: Value) -> tuple[Value, Value, Value]:
    """Pixels of Y, Cb and Cr, uint16 8.8, to bytes R, G and B.

    Sums are kept in 10.6, so that they fit 16 bits; each product loses half a step on average.
    """
    narrow, wide = vector(I16, PIXELS), vector(I32, PIXELS)

    def times(value: Value, factor: float) -> Value:
        product = builder.mul(builder.sext(value, wide), constant(I32, PIXELS, round(factor * (1 << 14))))
        return builder.trunc(builder.lshr(product, constant(I32, PIXELS, 16)), narrow)

    def to_bytes(total: Value, products: int) -> Value:
        rounded = builder.add(total, constant(I16, PIXELS, 32 + (products + 1) // 2))
        clamped = clamp_to_byte(builder, builder.ashr(rounded, constant(I16, PIXELS, 6)))
        return builder.trunc(clamped, vector(I8, PIXELS))

    y = builder.lshr(luma, constant(I16, PIXELS, 2))
    u, v = (builder.sub(chroma, constant(I16, PIXELS, NEUTRAL)) for chroma in (blue, red))
    r = to_bytes(builder.add(y, times(v, 1.402)), 1)
    g = to_bytes(builder.sub(builder.sub(y, times(u, 0.344136)), times(v, 0.714136)), -2)
    b = to_bytes(builder.add(y, times(u, 1.772)), 1)
    return r, g, b


@operation(10)
def write_pixels(
    builder: Builder,
    luma: Value,
    blue: Value,
    red: Value,
    pitch: Value,
    luma_weights: Value,
    luma_count: Value,
    chroma_weights: Value,
    chroma_count: Value,
    weight_pitch: Value,
    out: Value,
) -> None:
    """32 pixels of an output row, 96 bytes RGB, from lines of uint16, ``pitch`` bytes apart.

    ``luma_count`` lines of luma; of ``blue`` and ``red`` each ``chroma_count``, none for a gray image. A line's
    weight is one uint16, the next one's ``weight_pitch`` bytes further.
    """
    (y,) = _weighed_rows(builder, [luma], pitch, luma_weights, weight_pitch, luma_count)
    u, v = _weighed_rows(builder, [blue, red], pitch, chroma_weights, weight_pitch, chroma_count)
    r, g, b = _converted(builder, y, u, v)
    both = [shuffle(builder, first, second, range(2 * PIXELS)) for first, second in ((r, g), (b, b))]
    interleaved = [channel * PIXELS + i for i in range(PIXELS) for channel in range(3)]
    for part in (interleaved[:64], interleaved[64:]):  # as the widest registers are
        store(builder, shuffle(builder, both[0], both[1], part), out)
        out = offset(builder, out, len(part))


@compiled
def resize_columns(
    plane: NDArray[np.uint8],
    stride: int,
    top: int,
    bottom: int,
    taps: ResizeWeights,
    lines: NDArray[np.uint16],
) -> None:
    """Resize the rows ``top`` to ``bottom`` of a plane along x, into the same rows of ``lines``."""
    begin = top // ROWS * ROWS
    weights, weight_pitch = U(taps.weights.ctypes.data), U(taps.weights.strides[0])
    pitch = U(lines.strides[0])
    firsts, source, target = U(taps.first.ctypes.data), U(plane.ctypes.data), U(lines.ctypes.data)
    for x in range(0, taps.first.size, TILE):
        for y in range(begin, bottom, ROWS):
            weigh_columns(
                source + U(y),
                U(stride),
                firsts + U(8 * x),
                weights + U(2 * x),
                weight_pitch,
                U(taps.span[2]),
                target + U(y) * pitch + U(2 * x),
                pitch,
            )


@compiled
def write_rows(
    lines: NDArray[np.uint16],
    luma: ResizeWeights,
    chroma: ResizeWeights,
    gray: bool,
    pixels: NDArray[np.uint8],
    out: NDArray[np.uint8],
) -> None:
    """Resize ``lines`` along y and convert them to RGB, into ``out`` and not a byte beyond.

    In addresses: a view of an array costs more than sixteen pixels do.
    """
    height, width = out.shape[0], out.shape[1]
    source, component, pitch = U(lines.ctypes.data), U(lines.strides[0]), U(lines.strides[1])
    luma_count, chroma_count = U(luma.span[2]), U(0) if gray else U(chroma.span[2])
    luma_weights, chroma_weights = U(luma.weights.ctypes.data), U(chroma.weights.ctypes.data)
    weight_pitch = U(luma.weights.strides[0])  # and chroma's: they have as many outputs
    whole = width >= PIXELS
    aside, row = U(pixels.ctypes.data), U(out.ctypes.data)
    for y in range(height):
        luma_line = source + U(luma.first[y]) * pitch
        chroma_line = source + component + U(0 if gray else chroma.first[y]) * pitch
        for group in range(0, width, PIXELS):
            x = min(group, width - PIXELS) if whole else 0  # the last group overlaps the one before
            write_pixels(
                luma_line + U(2 * x),
                chroma_line + U(2 * x),
                chroma_line + component + U(2 * x),
                pitch,
                luma_weights,
                luma_count,
                chroma_weights,
                chroma_count,
                weight_pitch,
                row + U(3 * x) if whole else aside,
            )
        if not whole:
            for x in range(width):
                for channel in range(3):
                    out[y, x, channel] = pixels[3 * x + channel]
        row += U(3 * width)
        luma_weights += U(2)
        chroma_weights += U(2)
