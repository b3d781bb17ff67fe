"""Coefficients to samples: DC prediction, and the inverse DCT of the blocks that are wanted."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.compiled import compiled, inlined
from rebar.jpeg.huffman import END_OF_BLOCK
from rebar.jpeg.inverse_dct import fill_block, inverse_dct
from rebar.jpeg.vectors import clear_block, load_int16, load_uint8, store_int16

U = np.uint64
_BLOCK_BYTES = 128


class Target(NamedTuple):
    """Where one component's blocks go, in plain integers: kernels pass these in registers, and arrays not.

    ``plane`` is the address of the sample (0, 0) of the picture, were it decoded, ``stride`` the bytes from a
    column to the next; ``left``, ``right``, ``top``, ``bottom`` the wanted blocks, half-open;
    ``quantisation`` the address of 64 int16 steps.
    """

    plane: np.uint64
    stride: int
    left: int
    right: int
    top: int
    bottom: int
    quantisation: np.uint64


@compiled
def transform_units(
    coefficients: np.uint64,
    ends: np.uint64,
    unit: int,
    units: int,
    units_wide: int,
    across: int,
    down: int,
    luma: Target,
    blue: Target,
    red: Target,
    gray: bool,
    predictions: NDArray[np.int64],
) -> None:
    """Transform ``units`` units, the first being the picture's ``unit``-th; clears their coefficients.

    ``coefficients`` and ``ends`` are addresses of what :mod:`rebar.jpeg.entropy` decoded. ``predictions``
    int64 ``[3]`` are the DC predictions (T.81, F.2.1.3.1), brought up to date.
    """
    prediction, blue_prediction, red_prediction = predictions[0], predictions[1], predictions[2]
    row, column = unit // units_wide, unit % units_wide
    for _ in range(units):
        for v in range(down):
            for h in range(across):
                prediction += np.int64(load_int16(coefficients))
                _transform(coefficients, ends, column * across + h, row * down + v, prediction, luma)
                coefficients += U(_BLOCK_BYTES)
                ends += U(1)
        if not gray:
            blue_prediction += np.int64(load_int16(coefficients))
            _transform(coefficients, ends, column, row, blue_prediction, blue)
            coefficients += U(_BLOCK_BYTES)
            ends += U(1)
            red_prediction += np.int64(load_int16(coefficients))
            _transform(coefficients, ends, column, row, red_prediction, red)
            coefficients += U(_BLOCK_BYTES)
            ends += U(1)
        column += 1
        if column == units_wide:
            row, column = row + 1, 0
    predictions[0], predictions[1], predictions[2] = prediction, blue_prediction, red_prediction


@inlined
def _transform(coefficients: np.uint64, ends: np.uint64, x: int, y: int, dc: int, target: Target) -> None:
    """One block, its component's (x, y)-th, into the plane if it is wanted."""
    if x < target.left or x >= target.right or y < target.top or y >= target.bottom:
        clear_block(coefficients)
        return
    out = target.plane + U(8 * x * target.stride + 8 * y)
    if load_uint8(ends) == END_OF_BLOCK + 1:  # DC alone: what the transform comes to
        store_int16(coefficients, np.int16(0))
        product = np.int64(np.int16(dc * np.int64(load_int16(target.quantisation))))
        fill_block(U(min(max(((product + 4) >> 3) + 128, 0), 255)), out, U(target.stride))
    else:
        store_int16(coefficients, np.int16(dc))
        inverse_dct(coefficients, target.quantisation, out, U(target.stride))
