"""The vector kernels, pixel for pixel the same fixed-point arithmetic in NumPy."""

import numpy as np
import pytest
from numpy.typing import NDArray

from rebar.jpeg.compiled import kernel
from rebar.jpeg.regions import SURPLUS
from rebar.jpeg.resampling import new_resample_scratch, resize_columns, resize_row, write_row
from rebar.jpeg.taps import COLUMN_ONE, ROW_ONE, WHOLE, Taps, new_taps, set_taps

U = np.uint64


@kernel
def _columns(
    plane: NDArray[np.uint8], stride: int, height: int, taps: Taps, lines: NDArray[np.uint16], pitch: int
) -> None:
    resize_columns(plane, stride, 0, height, taps, lines, pitch)


@kernel
def _row(lines: NDArray[np.uint16], pitch: int, taps: Taps, y: int, row: NDArray[np.uint16]) -> None:
    resize_row(U(lines.ctypes.data), pitch, taps, y, U(row.ctypes.data))


@kernel
def _colours(
    row: NDArray[np.uint16], pitch: int, pixels: NDArray[np.uint8], out: NDArray[np.uint8], width: int
) -> None:
    write_row(U(row.ctypes.data), pitch, U(pixels.ctypes.data), U(out.ctypes.data), width)


def taps_of(outputs: int, size: int, one: int) -> Taps:
    taps = new_taps(outputs, size)
    set_taps.py_func(taps, outputs, 0, size, size >= outputs, WHOLE, size, one, False)
    return taps


@pytest.mark.parametrize("outputs", [1, 7, 8, 33, 64])
@pytest.mark.parametrize("size", [1, 20, 150])
def test_columns(outputs: int, size: int) -> None:
    height, stride = 45, 64
    plane = np.random.default_rng(0).integers(0, 256, (size + SURPLUS, stride)).astype(np.uint8)
    taps = taps_of(outputs, size, COLUMN_ONE)
    scratch = new_resample_scratch(outputs, height)
    pitch = scratch.row.shape[1]
    _columns(plane.ravel(), stride, height, taps, scratch.lines[0], pitch)
    lines = scratch.lines[0].reshape(-1, pitch)[:height, :outputs]
    for x in range(outputs):
        weights = taps.weights[x, : taps.span[2]].astype(np.int64)
        expected = weights @ plane[taps.first[x] : taps.first[x] + taps.span[2], :height].astype(np.int64)
        np.testing.assert_array_equal(lines[:, x], expected)


@pytest.mark.parametrize("size", [1, 20, 45, 600])
def test_rows(size: int) -> None:
    pitch, outputs = 64, 24
    lines = np.random.default_rng(1).integers(0, 255 * 256 + 1, (size + SURPLUS, pitch)).astype(np.uint16)
    taps = taps_of(outputs, size, ROW_ONE)
    row = np.zeros(pitch, np.uint16)
    for y in range(outputs):
        _row(lines.ravel(), pitch, taps, y, row)
        samples = lines[taps.first[y] : taps.first[y] + taps.span[2]].astype(np.int64)
        weights = taps.weights[y, : taps.span[2]].astype(np.int64)
        expected = ((samples * weights[:, None]) >> 16).sum(axis=0) + min(taps.span[2] // 2, 128)
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("width", [1, 5, 15, 16, 17, 31, 32, 50])
def test_colours(width: int) -> None:
    pitch = 64
    row = np.random.default_rng(width).integers(0, 255 * 256 + 1, (3, pitch)).astype(np.uint16)
    memory = np.full(3 * width + 200, 77, np.uint8)
    _colours(row, pitch, np.zeros(48, np.uint8), memory[100:-100], width)
    assert (memory[:100] == 77).all()
    assert (memory[-100:] == 77).all()
    y, cb, cr = row[:, :width].astype(np.int64)
    y, cb, cr = y >> 2, cb - 32768, cr - 32768

    def times(value: NDArray[np.int64], factor: float) -> NDArray[np.int64]:
        return (value * round(factor * 16384)) >> 16

    r = (y + times(cr, 1.402) + 33) >> 6
    g = (y - times(cb, 0.344136) - times(cr, 0.714136) + 31) >> 6
    b = (y + times(cb, 1.772) + 33) >> 6
    np.testing.assert_array_equal(memory[100:-100].reshape(width, 3), np.clip(np.stack([r, g, b], axis=-1), 0, 255))
