"""DC prediction, dequantization and inverse DCT of 8x8 blocks, bit-identical to libjpeg's accurate integer DCT.

Loeffler, Ligtenberg, Moschytz, "Practical fast 1-D DCT algorithms with 11 multiplications", ICASSP 1989; 13-bit
constants, two fraction bits kept between the passes; ITU-T T.81, A.3.3. Blocks are stored column by column, which saves
one of two transposes and is the order that the resize kernels read.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.kernels.huffman import END_OF_BLOCK
from rebar.jpeg.kernels.jit import (
    I8,
    I16,
    I32,
    Builder,
    Value,
    broadcast,
    clamp_to_byte,
    clear_block,
    compiled,
    constant,
    inlined,
    load,
    load_int16,
    load_uint8,
    offset,
    operation,
    step,
    store,
    store_int16,
    transpose8,
    vector,
)

U = np.uint64
_BLOCK_BYTES = 128
_CONSTANT_BITS = 13
_KEPT_BITS = 2  # fraction bits between the passes
_LEVEL_SHIFT = 128


def _pass(builder: Builder, rows: Sequence[Value], shift: int, rounding: int) -> list[Value]:
    """Transform one dimension of eight int32 vectors; add ``rounding`` and shift right by ``shift``."""
    lanes = rows[0].type.count

    def times(value: Value, factor: int) -> Value:
        return builder.mul(value, constant(I32, lanes, factor))

    def add(first: Value, *others: Value) -> Value:
        for other in others:
            first = builder.add(first, other)
        return first

    sub = builder.sub
    scale, half = constant(I32, lanes, _CONSTANT_BITS), constant(I32, lanes, rounding)
    even = times(add(rows[2], rows[6]), 4433)
    even2, even3 = sub(even, times(rows[6], 15137)), add(even, times(rows[2], 6270))
    even0 = add(builder.shl(add(rows[0], rows[4]), scale), half)
    even1 = add(builder.shl(sub(rows[0], rows[4]), scale), half)
    evens = (add(even0, even3), add(even1, even2), sub(even1, even2), sub(even0, even3))
    sum73, sum51 = add(rows[7], rows[3]), add(rows[5], rows[1])
    both = times(add(sum73, sum51), 9633)
    part71, part53 = times(add(rows[7], rows[1]), -7373), times(add(rows[5], rows[3]), -20995)
    part73, part51 = add(times(sum73, -16069), both), add(times(sum51, -3196), both)
    odds = (
        add(times(rows[1], 12299), part71, part51),
        add(times(rows[3], 25172), part53, part73),
        add(times(rows[5], 16819), part53, part51),
        add(times(rows[7], 2446), part71, part73),
    )
    amount = constant(I32, lanes, shift)
    first = [builder.ashr(add(e, o), amount) for e, o in zip(evens, odds, strict=True)]
    second = [builder.ashr(sub(e, o), amount) for e, o in zip(evens, odds, strict=True)]
    return first + second[::-1]


@operation(4)
def inverse_dct(builder: Builder, coefficients: Value, quantization: Value, out: Value, stride: Value) -> None:
    """Dequantize and transform 64 int16 coefficients, in row-major order, to eight columns of bytes.

    Column x is stored at ``out + x * stride``. The coefficients are set to zero for the next block.
    """
    rows = []
    for y in range(8):
        coefficient = load(builder, offset(builder, coefficients, 16 * y), I16, 8)
        steps = load(builder, offset(builder, quantization, 16 * y), I16, 8)
        rows.append(builder.sext(builder.mul(coefficient, steps), vector(I32, 8)))
        store(builder, constant(I16, 8, 0), offset(builder, coefficients, 16 * y))
    first_shift = _CONSTANT_BITS - _KEPT_BITS
    rows = _pass(builder, rows, first_shift, 1 << (first_shift - 1))
    second_shift = _CONSTANT_BITS + _KEPT_BITS + 3
    rounding = (1 << (second_shift - 1)) + (_LEVEL_SHIFT << second_shift)
    columns = _pass(builder, transpose8(builder, rows), second_shift, rounding)
    for x, column in enumerate(columns):
        store(builder, builder.trunc(clamp_to_byte(builder, column), vector(I8, 8)), step(builder, out, stride, x))


@operation(3)
def fill_block(builder: Builder, level: Value, out: Value, stride: Value) -> None:
    """Set eight columns of eight bytes to ``level``, the result for a block without AC coefficients."""
    column = broadcast(builder, builder.trunc(level, I8), 8)
    for x in range(8):
        store(builder, column, step(builder, out, stride, x))


class Target(NamedTuple):
    """The destination of one component's blocks, as integers, which kernels pass in registers.

    ``plane`` is the address that sample (0, 0) of the full image would have, ``stride`` the bytes between columns.
    ``left``, ``right``, ``top``, ``bottom`` are the needed blocks, half-open. ``quantization`` is the address of 64
    int16 steps.
    """

    plane: np.uint64
    stride: int
    left: int
    right: int
    top: int
    bottom: int
    quantization: np.uint64


@compiled
def dequantize_and_idct(
    coefficients: np.uint64,
    ends: np.uint64,
    mcu: int,
    mcus: int,
    mcus_per_row: int,
    h_samp: int,
    v_samp: int,
    luma: Target,
    cb: Target,
    cr: Target,
    gray: bool,
    predictions: NDArray[np.int64],
) -> None:
    """Transform ``mcus`` MCUs, starting with MCU number ``mcu`` of the image, and set their coefficients to zero.

    ``coefficients`` and ``ends`` are the addresses that :mod:`rebar.jpeg.kernels.entropy` decoded to. ``predictions``
    int64 ``[3]`` are the DC predictions (T.81, F.2.1.3.1) and are updated.
    """
    luma_prediction, cb_prediction, cr_prediction = predictions[0], predictions[1], predictions[2]
    row, column = mcu // mcus_per_row, mcu % mcus_per_row
    for _ in range(mcus):
        for v in range(v_samp):
            for h in range(h_samp):
                luma_prediction += np.int64(load_int16(coefficients))
                _transform(coefficients, ends, column * h_samp + h, row * v_samp + v, luma_prediction, luma)
                coefficients += U(_BLOCK_BYTES)
                ends += U(1)
        if not gray:
            cb_prediction += np.int64(load_int16(coefficients))
            _transform(coefficients, ends, column, row, cb_prediction, cb)
            coefficients += U(_BLOCK_BYTES)
            ends += U(1)
            cr_prediction += np.int64(load_int16(coefficients))
            _transform(coefficients, ends, column, row, cr_prediction, cr)
            coefficients += U(_BLOCK_BYTES)
            ends += U(1)
        column += 1
        if column == mcus_per_row:
            row, column = row + 1, 0
    predictions[0], predictions[1], predictions[2] = luma_prediction, cb_prediction, cr_prediction


@inlined
def _transform(coefficients: np.uint64, ends: np.uint64, x: int, y: int, dc: int, target: Target) -> None:
    """Transform block (x, y) of a component into its plane if it is needed."""
    if x < target.left or x >= target.right or y < target.top or y >= target.bottom:
        clear_block(coefficients)
        return
    out = target.plane + U(8 * x * target.stride + 8 * y)
    if load_uint8(ends) == END_OF_BLOCK + 1:  # DC only: the transform is a constant
        store_int16(coefficients, np.int16(0))
        product = np.int64(np.int16(dc * np.int64(load_int16(target.quantization))))
        fill_block(U(min(max(((product + 4) >> 3) + 128, 0), 255)), out, U(target.stride))
    else:
        store_int16(coefficients, np.int16(dc))
        inverse_dct(coefficients, target.quantization, out, U(target.stride))
