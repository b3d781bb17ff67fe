"""The resize weights are those of cv2 INTER_AREA after libjpeg's chroma upsampling."""

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rebar.jpeg.kernel_arguments import Extents, ResizeWeights, new_extents, new_resize_weights
from rebar.jpeg.kernels.jit import kernel
from rebar.jpeg.kernels.resize_weights import (
    COLUMN_UNITY,
    FANCY_UPSAMPLING,
    FULL_RESOLUTION,
    PLAIN_UPSAMPLING,
    ROW_UNITY,
    set_extents,
    set_resize_weights,
)
from tests.jpeg.images import upsample


@kernel
def _set_weights(
    axis: ResizeWeights,
    extents: Extents,
    outputs: int,
    start: int,
    size: int,
    area: bool,
    far: float,
    samples: int,
    unity: int,
    flip: bool,
) -> None:
    set_extents(extents, outputs, size, area, flip)
    set_resize_weights(axis, extents, start, far, samples, unity)


def resize_weights(
    outputs: int, start: int, size: int, area: bool, far: float, samples: int, unity: int, flip: bool = False
) -> ResizeWeights:
    axis = new_resize_weights(outputs, size)
    _set_weights(axis, new_extents(outputs), outputs, start, size, area, far, samples, unity, flip)
    return axis


def as_matrix(axis: ResizeWeights, outputs: int, samples: int, unity: int) -> NDArray[np.float64]:
    """Return the weights as ``[outputs, samples]``; check that all of them are within the samples' range."""
    begin, end, count = axis.span
    matrix = np.zeros((outputs, samples))
    for output in range(outputs):
        for t in range(count):
            if axis.weights[t, output]:
                assert begin <= axis.first[output] + t < end
                matrix[output, axis.first[output] + t] += axis.weights[t, output] / unity
    return matrix


def cv2_matrix(outputs: int, size: int, area: bool) -> NDArray[np.float64]:
    """Return cv2's weights, from images with one pixel set; the other axis shrinks, or grows unless ``area``."""
    other, other_out = (2, 1) if area else (1, 2)
    impulses = np.repeat(np.eye(size, dtype=np.float32)[:, None, :], other, axis=1)  # image i has pixel i set
    resized = [cv2.resize(image, (outputs, other_out), interpolation=cv2.INTER_AREA)[0] for image in impulses]
    return np.stack(resized, axis=1)


@settings(max_examples=150, deadline=None)
@given(outputs=st.integers(1, 60), size=st.integers(1, 90), shrinks=st.booleans(), unity=st.sampled_from([256, 65535]))
@example(outputs=7, size=49, shrinks=True, unity=COLUMN_UNITY)
@example(outputs=1, size=90, shrinks=True, unity=ROW_UNITY)
@example(outputs=30, size=60, shrinks=False, unity=ROW_UNITY)
def test_set_resize_weights_agrees_with_cv2(outputs: int, size: int, shrinks: bool, unity: int) -> None:
    area = shrinks and size >= outputs
    matrix = as_matrix(resize_weights(outputs, 0, size, area, FULL_RESOLUTION, size, unity), outputs, size, unity)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix, cv2_matrix(outputs, size, area), atol=1 / unity + 2e-3)


@settings(max_examples=150, deadline=None)
@given(
    outputs=st.integers(1, 40),
    full_size=st.integers(1, 90),
    far=st.sampled_from([FANCY_UPSAMPLING, PLAIN_UPSAMPLING]),
    shrinks=st.booleans(),
    data=st.data(),
)
def test_chroma_weights_agree_with_upsampling_before_cv2(
    outputs: int, full_size: int, far: float, shrinks: bool, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, full_size - 1))
    size = data.draw(st.integers(1, full_size - start))
    samples = -(-full_size // 2)
    area = shrinks and size >= outputs
    matrix = as_matrix(resize_weights(outputs, start, size, area, far, samples, ROW_UNITY), outputs, samples, ROW_UNITY)
    pixels = upsample(np.eye(samples, dtype=np.float32), 0, full_size, smooth=far == FANCY_UPSAMPLING)[
        start : start + size
    ]
    np.testing.assert_allclose(matrix, cv2_matrix(outputs, size, area) @ pixels, atol=3e-3)


@pytest.mark.parametrize("far", [FULL_RESOLUTION, FANCY_UPSAMPLING])
def test_flip_reverses_the_weights(far: float) -> None:
    plain = resize_weights(13, 5, 41, True, far, 50, COLUMN_UNITY)
    flipped = resize_weights(13, 5, 41, True, far, 50, COLUMN_UNITY, flip=True)
    np.testing.assert_array_equal(flipped.first[:13], plain.first[:13][::-1])
    np.testing.assert_array_equal(flipped.weights[:, :13], plain.weights[:, :13][:, ::-1])
    np.testing.assert_array_equal(flipped.span, plain.span)
