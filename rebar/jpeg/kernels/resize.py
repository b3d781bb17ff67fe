"""Convert YCbCr planes to an RGB image of any size: weight columns, weight rows, convert colors.

All arithmetic is 8.8 fixed point in 16 bits. The planes are column-major, so the columns of eight output pixels are
summed for 32 rows at once and stored transposed, row by row. Then 32 pixels of an output row are summed and converted
in registers. Weights come from :mod:`rebar.jpeg.kernels.resize_weights`. For a horizontal flip, the
column weights are reversed.
"""

from collections.abc import Callable, Sequence

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from rebar.jpeg.format import Header
from rebar.jpeg.kernel_arguments import (
    TILE_COLUMNS,
    TILE_PIXELS,
    TILE_ROWS,
    AxisWeights,
    RegionScratch,
    ResizeScratch,
    ResizeWeights,
)
from rebar.jpeg.kernels.jit import (
    I8,
    I16,
    I32,
    I64,
    Builder,
    Value,
    broadcast,
    clamp_to_byte,
    compiled,
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

U = np.uint64
NEUTRAL = 128 << 8  # chroma of gray


def _weighted_sums(
    builder: Builder, count: Value, start: Sequence[Value], body: Callable[[Value, Sequence[Value]], Sequence[Value]]
) -> list[Value]:
    """Emit ``for t in range(count): sums = body(t, sums)`` and return the sums."""
    before = builder.block
    head, loop, end = (builder.append_basic_block(name) for name in ("head", "body", "end"))
    builder.branch(head)
    builder.position_at_end(head)
    t = builder.phi(I64)
    t.add_incoming(ir.Constant(I64, 0), before)
    sums = [builder.phi(value.type) for value in start]
    for phi, value in zip(sums, start, strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_unsigned("<", t, count), loop, end)
    builder.position_at_end(loop)
    updated = body(t, sums)
    t.add_incoming(builder.add(t, ir.Constant(I64, 1)), builder.block)
    for phi, value in zip(sums, updated, strict=True):
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(end)
    return sums


@operation(8)
def weight_columns(
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
    """Compute eight output columns of 32 rows as weighted sums of ``count`` columns of bytes each.

    ``plane`` is the address of the 32 bytes of column 0; ``firsts`` int64 ``[8]`` are the first columns to sum.
    ``weights`` is the address of uint16 ``[8]``, with the next columns' weights ``pitch`` bytes apart. The result is
    stored as 32 rows of eight uint16.
    """
    columns = []
    for i in range(TILE_COLUMNS):
        first = load_scalar(builder, offset(builder, firsts, 8 * i), I64)
        columns.append(builder.add(plane, builder.mul(first, stride)))

    def add_sample(t: Value, sums: Sequence[Value]) -> Sequence[Value]:
        along, row_weights = builder.mul(t, stride), builder.add(weights, builder.mul(t, pitch))
        updated = []
        for i, (column, total) in enumerate(zip(columns, sums, strict=True)):
            samples = builder.zext(load(builder, builder.add(column, along), I8, TILE_ROWS), vector(I16, TILE_ROWS))
            weight = load_scalar(builder, offset(builder, row_weights, 2 * i), I16)
            updated.append(builder.add(total, builder.mul(samples, broadcast(builder, weight, TILE_ROWS))))
        return updated

    sums = _weighted_sums(builder, count, [constant(I16, TILE_ROWS, 0)] * TILE_COLUMNS, add_sample)
    for i, rows in enumerate(transpose8(builder, sums)):
        for part in range(TILE_ROWS // 8):
            row = shuffle(builder, rows, rows, range(8 * part, 8 * part + 8))
            store(builder, row, step(builder, out, out_pitch, 8 * part + i))


def _weight_rows(
    builder: Builder, lines: Sequence[Value], pitch: Value, weights: Value, weight_pitch: Value, count: Value
) -> Sequence[Value]:
    """Return the weighted sum of ``count`` lines for 32 pixels of each component; NEUTRAL if ``count`` is 0."""
    int32 = vector(I32, TILE_PIXELS)

    def add_sample(t: Value, sums: Sequence[Value]) -> Sequence[Value]:
        along = builder.mul(t, pitch)
        scalar = load_scalar(builder, builder.add(weights, builder.mul(t, weight_pitch)), I16)
        weight = builder.zext(broadcast(builder, scalar, TILE_PIXELS), int32)
        updated = []
        for line, total in zip(lines, sums, strict=True):
            samples = builder.zext(load(builder, builder.add(line, along), I16, TILE_PIXELS), int32)
            high = builder.lshr(builder.mul(samples, weight), constant(I32, TILE_PIXELS, 16))
            updated.append(builder.add(total, builder.trunc(high, vector(I16, TILE_PIXELS))))
        return updated

    # Each product drops its low half, which is half a step on average.
    half, limit = builder.lshr(count, ir.Constant(I64, 1)), ir.Constant(I64, 128)
    start = builder.select(builder.icmp_unsigned(">", half, limit), limit, half)
    is_gray = builder.icmp_unsigned("==", count, ir.Constant(I64, 0))
    start = builder.trunc(builder.select(is_gray, ir.Constant(I64, NEUTRAL), start), I16)
    return _weighted_sums(builder, count, [broadcast(builder, start, TILE_PIXELS)] * len(lines), add_sample)


def _ycc_to_rgb(builder: Builder, luma: Value, cb: Value, cr: Value) -> tuple[Value, Value, Value]:
    """Convert pixels from Y, Cb and Cr, uint16 in 8.8 fixed point, to bytes R, G and B.

    Sums are in 10.6, so that they fit 16 bits; each product loses half a step on average.
    """
    int16, int32 = vector(I16, TILE_PIXELS), vector(I32, TILE_PIXELS)

    def times(value: Value, factor: float) -> Value:
        product = builder.mul(builder.sext(value, int32), constant(I32, TILE_PIXELS, round(factor * (1 << 14))))
        return builder.trunc(builder.lshr(product, constant(I32, TILE_PIXELS, 16)), int16)

    def to_bytes(total: Value, products: int) -> Value:
        rounded = builder.add(total, constant(I16, TILE_PIXELS, 32 + (products + 1) // 2))
        clamped = clamp_to_byte(builder, builder.ashr(rounded, constant(I16, TILE_PIXELS, 6)))
        return builder.trunc(clamped, vector(I8, TILE_PIXELS))

    y = builder.lshr(luma, constant(I16, TILE_PIXELS, 2))
    cb, cr = (builder.sub(chroma, constant(I16, TILE_PIXELS, NEUTRAL)) for chroma in (cb, cr))
    r = to_bytes(builder.add(y, times(cr, 1.402)), 1)
    g = to_bytes(builder.sub(builder.sub(y, times(cb, 0.344136)), times(cr, 0.714136)), -2)
    b = to_bytes(builder.add(y, times(cb, 1.772)), 1)
    return r, g, b


@operation(10)
def write_pixels(
    builder: Builder,
    luma: Value,
    cb: Value,
    cr: Value,
    pitch: Value,
    luma_weights: Value,
    luma_count: Value,
    chroma_weights: Value,
    chroma_count: Value,
    weight_pitch: Value,
    out: Value,
) -> None:
    """Write 32 pixels of an output row, 96 bytes RGB, from uint16 lines that are ``pitch`` bytes apart.

    ``luma_count`` lines of luma are summed, and ``chroma_count`` lines each of ``cb`` and ``cr``, 0 for a grayscale
    image. Each line has one uint16 weight, and the weights are ``weight_pitch`` bytes apart.
    """
    (y,) = _weight_rows(builder, [luma], pitch, luma_weights, weight_pitch, luma_count)
    cb, cr = _weight_rows(builder, [cb, cr], pitch, chroma_weights, weight_pitch, chroma_count)
    r, g, b = _ycc_to_rgb(builder, y, cb, cr)
    pairs = [shuffle(builder, first, second, range(2 * TILE_PIXELS)) for first, second in ((r, g), (b, b))]
    interleaved = [channel * TILE_PIXELS + i for i in range(TILE_PIXELS) for channel in range(3)]
    for part in (interleaved[:64], interleaved[64:]):  # the width of the widest registers
        store(builder, shuffle(builder, pairs[0], pairs[1], part), out)
        out = offset(builder, out, len(part))


@compiled
def resize(
    header: Header, region: RegionScratch, weights: AxisWeights, scratch: ResizeScratch, out: NDArray[np.uint8]
) -> None:
    """Resize the decoded planes and convert them to RGB."""
    for c in range(header.components):
        x, y = (weights.luma_x, weights.luma_y) if c == 0 else (weights.chroma_x, weights.chroma_y)
        left, top, stride = region.layout[c, 0], region.layout[c, 1], region.layout[c, 2]
        if c < 2:  # Cb and Cr use the same weights
            for i in range(x.first.size):
                x.first[i] -= left
            for i in range(y.first.size):
                y.first[i] -= top
        resize_columns(region.planes[c], stride, y.span[0] - top, y.span[1] - top, x, scratch.lines[c])
    write_rows(scratch.lines, weights.luma_y, weights.chroma_y, header.components == 1, scratch.pixels, out)


@compiled
def resize_columns(
    plane: NDArray[np.uint8],
    stride: int,
    top: int,
    bottom: int,
    weights_x: ResizeWeights,
    lines: NDArray[np.uint16],
) -> None:
    """Resize rows ``top`` to ``bottom`` of a plane along x, into the same rows of ``lines``."""
    begin = top // TILE_ROWS * TILE_ROWS
    weights, weight_pitch = U(weights_x.weights.ctypes.data), U(weights_x.weights.strides[0])
    pitch = U(lines.strides[0])
    firsts, source, target = U(weights_x.first.ctypes.data), U(plane.ctypes.data), U(lines.ctypes.data)
    for x in range(0, weights_x.first.size, TILE_COLUMNS):
        for y in range(begin, bottom, TILE_ROWS):
            weight_columns(
                source + U(y),
                U(stride),
                firsts + U(8 * x),
                weights + U(2 * x),
                weight_pitch,
                U(weights_x.span[2]),
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
    """Resize ``lines`` along y, convert them to RGB and write them to ``out``, uint8 ``[height, width, 3]``.

    The code uses addresses, because creating an array view takes longer than sixteen pixels.
    """
    height, width = out.shape[0], out.shape[1]
    source, component, pitch = U(lines.ctypes.data), U(lines.strides[0]), U(lines.strides[1])
    luma_count, chroma_count = U(luma.span[2]), U(0) if gray else U(chroma.span[2])
    luma_weights, chroma_weights = U(luma.weights.ctypes.data), U(chroma.weights.ctypes.data)
    weight_pitch = U(luma.weights.strides[0])  # the same for chroma, which has the same number of outputs
    is_wide = width >= TILE_PIXELS
    staging, row = U(pixels.ctypes.data), U(out.ctypes.data)
    for y in range(height):
        luma_line = source + U(luma.first[y]) * pitch
        chroma_line = source + component + U(0 if gray else chroma.first[y]) * pitch
        for group in range(0, width, TILE_PIXELS):
            x = min(group, width - TILE_PIXELS) if is_wide else 0  # the last group overlaps the previous one
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
                row + U(3 * x) if is_wide else staging,
            )
        if not is_wide:
            for x in range(width):
                for channel in range(3):
                    out[y, x, channel] = pixels[3 * x + channel]
        row += U(3 * width)
        luma_weights += U(2)
        chroma_weights += U(2)
