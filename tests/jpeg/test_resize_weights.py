"""The taps are cv2's INTER_AREA, through libjpeg's chroma upsampling."""

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rebar.jpeg.kernels.jit import kernel
from rebar.jpeg.kernels.resize_weights import (
    COLUMN_ONE,
    FANCY,
    REPLICATED,
    ROW_ONE,
    WHOLE,
    set_extents,
    set_resize_weights,
)
from rebar.jpeg.workspace import Extents, ResizeWeights, new_extents, new_resize_weights
from tests.jpeg.images import upsample


@kernel
def _set_taps(
    taps: ResizeWeights,
    extents: Extents,
    outputs: int,
    start: int,
    size: int,
    area: bool,
    far: float,
    samples: int,
    one: int,
    flip: bool,
) -> None:
    set_extents(extents, outputs, size, area, flip)
    set_resize_weights(taps, extents, start, far, samples, one)


def taps_of(
    outputs: int, start: int, size: int, area: bool, far: float, samples: int, one: int, flip: bool = False
) -> ResizeWeights:
    taps = new_resize_weights(outputs, size)
    _set_taps(taps, new_extents(outputs), outputs, start, size, area, far, samples, one, flip)
    return taps


def as_matrix(taps: ResizeWeights, outputs: int, samples: int, one: int) -> NDArray[np.float64]:
    """``[outputs, samples]``; checks on the way that all weights fall on samples that are there."""
    begin, behind, most = taps.span
    matrix = np.zeros((outputs, samples))
    for output in range(outputs):
        for t in range(most):
            if taps.weights[t, output]:
                assert begin <= taps.first[output] + t < behind
                matrix[output, taps.first[output] + t] += taps.weights[t, output] / one
    return matrix


def cv2_matrix(outputs: int, size: int, area: bool) -> NDArray[np.float64]:
    """What cv2 makes of each pixel alone; along the other axis it shrinks or, where not ``area``, grows."""
    other, other_out = (2, 1) if area else (1, 2)
    each = np.repeat(np.eye(size, dtype=np.float32)[:, None, :], other, axis=1)  # image i has pixel i set
    resized = [cv2.resize(one, (outputs, other_out), interpolation=cv2.INTER_AREA)[0] for one in each]
    return np.stack(resized, axis=1)


@settings(max_examples=150, deadline=None)
@given(outputs=st.integers(1, 60), size=st.integers(1, 90), shrinks=st.booleans(), one=st.sampled_from([256, 65535]))
@example(outputs=7, size=49, shrinks=True, one=COLUMN_ONE)
@example(outputs=1, size=90, shrinks=True, one=ROW_ONE)
@example(outputs=30, size=60, shrinks=False, one=ROW_ONE)
def test_weights_are_those_of_cv2(outputs: int, size: int, shrinks: bool, one: int) -> None:
    area = shrinks and size >= outputs
    matrix = as_matrix(taps_of(outputs, 0, size, area, WHOLE, size, one), outputs, size, one)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix, cv2_matrix(outputs, size, area), atol=1 / one + 2e-3)


@settings(max_examples=150, deadline=None)
@given(
    outputs=st.integers(1, 40),
    whole=st.integers(1, 90),
    far=st.sampled_from([FANCY, REPLICATED]),
    shrinks=st.booleans(),
    data=st.data(),
)
def test_chroma_weights_upsample_first(
    outputs: int, whole: int, far: float, shrinks: bool, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, whole - 1))
    size = data.draw(st.integers(1, whole - start))
    samples = -(-whole // 2)
    area = shrinks and size >= outputs
    matrix = as_matrix(taps_of(outputs, start, size, area, far, samples, ROW_ONE), outputs, samples, ROW_ONE)
    pixels = upsample(np.eye(samples, dtype=np.float32), 0, whole, smooth=far == FANCY)[start : start + size]
    np.testing.assert_allclose(matrix, cv2_matrix(outputs, size, area) @ pixels, atol=3e-3)


@pytest.mark.parametrize("far", [WHOLE, FANCY])
def test_flipped_taps_are_mirrored(far: float) -> None:
    plain = taps_of(13, 5, 41, True, far, 50, COLUMN_ONE)
    flipped = taps_of(13, 5, 41, True, far, 50, COLUMN_ONE, flip=True)
    np.testing.assert_array_equal(flipped.first[:13], plain.first[:13][::-1])
    np.testing.assert_array_equal(flipped.weights[:, :13], plain.weights[:, :13][:, ::-1])
    np.testing.assert_array_equal(flipped.span, plain.span)
