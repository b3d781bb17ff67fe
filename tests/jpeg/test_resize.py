"""The resize kernels are bit-identical to the same fixed-point arithmetic in NumPy."""

import numpy as np
import pytest
from numpy.typing import NDArray

from rebar.jpeg.kernel_arguments import (
    COLUMN_MARGIN,
    ResizeWeights,
    new_extents,
    new_resize_scratch,
    new_resize_weights,
)
from rebar.jpeg.kernels.jit import kernel
from rebar.jpeg.kernels.resize import NEUTRAL, resize_columns, write_rows
from rebar.jpeg.kernels.resize_weights import COLUMN_UNITY, FULL_RESOLUTION, ROW_UNITY, set_extents, set_resize_weights


@kernel
def _columns(
    plane: NDArray[np.uint8], stride: int, height: int, axis: ResizeWeights, lines: NDArray[np.uint16]
) -> None:
    resize_columns(plane, stride, 0, height, axis, lines)


@kernel
def _rows(
    lines: NDArray[np.uint16],
    luma: ResizeWeights,
    chroma: ResizeWeights,
    gray: bool,
    pixels: NDArray[np.uint8],
    out: NDArray[np.uint8],
) -> None:
    write_rows(lines, luma, chroma, gray, pixels, out)


def resize_weights(outputs: int, size: int, unity: int) -> ResizeWeights:
    axis, extents = new_resize_weights(outputs, size), new_extents(outputs)
    set_extents.py_func(extents, outputs, size, size >= outputs, False)
    set_resize_weights.py_func(axis, extents, 0, FULL_RESOLUTION, size, unity)
    return axis


@pytest.mark.parametrize("outputs", [1, 7, 8, 33, 64])
@pytest.mark.parametrize("size", [1, 20, 150])
def test_resize_columns_is_bit_exact(outputs: int, size: int) -> None:
    height, stride = 45, 64
    plane = np.random.default_rng(0).integers(0, 256, (size + COLUMN_MARGIN, stride)).astype(np.uint8)
    axis = resize_weights(outputs, size, COLUMN_UNITY)
    scratch = new_resize_scratch(outputs, height)
    _columns(plane.ravel(), stride, height, axis, scratch.lines[0])
    lines = scratch.lines[0, :height, :outputs]
    for x in range(outputs):
        weights = axis.weights[: axis.span[2], x].astype(np.int64)
        expected = weights @ plane[axis.first[x] : axis.first[x] + axis.span[2], :height].astype(np.int64)
        np.testing.assert_array_equal(lines[:, x], expected)


def weighted_row(lines: NDArray[np.uint16], axis: ResizeWeights, y: int) -> NDArray[np.int64]:
    """Return output row ``y`` of a component in 8.8 fixed point."""
    samples = lines[axis.first[y] : axis.first[y] + axis.span[2]].astype(np.int64)
    weights = axis.weights[: axis.span[2], y].astype(np.int64)
    return ((samples * weights[:, None]) >> 16).sum(axis=0) + min(axis.span[2] // 2, 128)


def ycc_to_rgb(y: NDArray[np.int64], cb: NDArray[np.int64], cr: NDArray[np.int64]) -> NDArray[np.int64]:
    y, cb, cr = y >> 2, cb - NEUTRAL, cr - NEUTRAL

    def times(value: NDArray[np.int64], factor: float) -> NDArray[np.int64]:
        return (value * round(factor * 16384)) >> 16

    r = (y + times(cr, 1.402) + 33) >> 6
    g = (y - times(cb, 0.344136) - times(cr, 0.714136) + 31) >> 6
    b = (y + times(cb, 1.772) + 33) >> 6
    return np.clip(np.stack([r, g, b], axis=-1), 0, 255)


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize(
    ("width", "size"), [(1, 1), (5, 20), (31, 45), (32, 45), (33, 600), (50, 20), (64, 45), (70, 3000)]
)
def test_write_rows_is_bit_exact(width: int, size: int, gray: bool) -> None:
    outputs, chroma_size = 24, -(-size // 2)
    rng = np.random.default_rng(width)
    scratch = new_resize_scratch(width, size)
    scratch.lines[:] = rng.integers(0, 255 * 256 + 1, scratch.lines.shape)
    luma, chroma = resize_weights(outputs, size, ROW_UNITY), resize_weights(outputs, chroma_size, ROW_UNITY)
    memory = np.full(outputs * 3 * width + 200, 77, np.uint8)
    out = memory[100:-100].reshape(outputs, width, 3)
    _rows(scratch.lines, luma, chroma, gray, scratch.pixels, out)
    assert (memory[:100] == 77).all()
    assert (memory[-100:] == 77).all()
    neutral = np.full(width, NEUTRAL, np.int64)
    for y in range(outputs):
        rows = [
            weighted_row(lines[:, :width], axis, y)
            for lines, axis in zip(scratch.lines, (luma, chroma, chroma), strict=True)
        ]
        expected = ycc_to_rgb(rows[0], neutral, neutral) if gray else ycc_to_rgb(rows[0], rows[1], rows[2])
        np.testing.assert_array_equal(out[y], expected)
