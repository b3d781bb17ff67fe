"""Crops lie in the image, and are distributed as FFCV's are."""

import math

import numpy as np
import pytest
from ffcv.fields.rgb_image import get_center_crop, get_random_crop
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rebar.loading.crops import IMAGENET_CENTER_RATIO, CenterCrop, Cropper, Crops, RandomResizedCrop
from rebar.loading.rng import RngKeys

SIZES = [(1, 1), (1, 1000), (1000, 1), (17, 1000), (1000, 17), (2, 3), (375, 500), (500, 333), (65535, 65535)]
side = st.one_of(st.integers(1, 40), st.integers(1, 65_535))


def crops_of(cropper: Cropper, sizes: list[tuple[int, int]], *, seed: int = 0, epoch: int = 0) -> Crops:
    heights, widths = np.array(sizes, np.int64).T
    return cropper.crops(heights, widths, RngKeys(seed, epoch, np.arange(len(sizes))))


def assert_inside(boxes: NDArray[np.int64], sizes: list[tuple[int, int]]) -> None:
    top, left, height, width = boxes.T
    heights, widths = np.array(sizes, np.int64).T
    assert (np.minimum(top, left) >= 0).all()
    assert (np.minimum(height, width) >= 1).all()
    assert (top + height <= heights).all()
    assert (left + width <= widths).all()


# ------------------------------------------------------------------ inside


@settings(deadline=None, max_examples=100)
@given(
    sizes=st.lists(st.tuples(side, side), min_size=1, max_size=100),
    seed=st.integers(),
    low=st.floats(0.001, 1),
    ratio=st.floats(0.01, 1),
)
def test_random_crops_lie_inside(sizes: list[tuple[int, int]], seed: int, low: float, ratio: float) -> None:
    usual = crops_of(RandomResizedCrop(), SIZES + sizes, seed=seed)
    assert_inside(usual.boxes, SIZES + sizes)
    assert_inside(crops_of(CenterCrop(), SIZES + sizes).boxes, SIZES + sizes)
    odd = RandomResizedCrop(scale=(low, 1.0), ratio=(ratio, 1 / ratio))
    assert_inside(crops_of(odd, sizes, seed=seed).boxes, sizes)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((60, 1000), (0, 460, 60, 80)),
        ((1000, 60), (460, 0, 80, 60)),
        pytest.param((1, 1000), (0, 499, 1, 1)),
        pytest.param((1000, 1), (499, 0, 1, 1)),
    ],
)
def test_what_no_random_crop_fits_is_cropped_in_the_centre(
    size: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    large = RandomResizedCrop(scale=(0.9, 1.0))  # no such share of the area has an allowed aspect
    assert tuple(crops_of(large, [size]).boxes[0]) == expected
    assert get_random_crop(*size, (0.9, 1.0), (3 / 4, 4 / 3)) == expected


# ------------------------------------------------------------------ distribution


def shapes(boxes: NDArray[np.int64], size: tuple[int, int]) -> dict[str, NDArray[np.float64]]:
    """What a crop is described by: area, aspect, and where its centre lies, as shares of the image."""
    top, left, height, width = boxes.T.astype(np.float64)
    return {
        "area": height * width / (size[0] * size[1]),
        "log aspect": np.log(width / height),
        "y": (top + height / 2) / size[0],
        "x": (left + width / 2) / size[1],
    }


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (100, 300), (5, 7)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.35, 1.0)])
def test_random_crops_are_distributed_like_ffcvs(size: tuple[int, int], scale: tuple[float, float]) -> None:
    count = 20_000
    np.random.seed(0)
    theirs = np.array([get_random_crop(*size, np.array(scale), np.array([3 / 4, 4 / 3])) for _ in range(count)])
    ours = crops_of(RandomResizedCrop(scale=scale), [size] * count).boxes
    quantiles = np.linspace(0, 1, 11)[1:-1]
    for name, expected in shapes(theirs, size).items():
        drawn = shapes(ours, size)[name]
        spread = expected.std()
        assert drawn.mean() == pytest.approx(expected.mean(), abs=0.04 * spread), name
        assert drawn.std() == pytest.approx(spread, rel=0.04), name
        for q, at in zip(quantiles, np.quantile(expected, quantiles), strict=True):  # as many below in both
            assert (drawn < at).mean() == pytest.approx((expected < at).mean(), abs=0.02), f"{name} {q:.1f}"


def test_half_are_mirrored() -> None:
    sizes = [(375, 500)] * 10_000
    random = crops_of(RandomResizedCrop(), sizes)
    assert random.flips.dtype == np.bool_
    assert random.flips.mean() == pytest.approx(0.5, abs=0.03)
    left = random.boxes[:, 1].astype(float)
    assert abs(np.corrcoef(random.flips, left)[0, 1]) < 0.06  # mirrored regardless of the box
    assert not crops_of(RandomResizedCrop(flip_probability=0), sizes).flips.any()
    assert crops_of(RandomResizedCrop(flip_probability=1), sizes).flips.all()
    assert not crops_of(CenterCrop(), sizes).flips.any()


def test_crops_change_with_the_epoch_and_not_with_the_company() -> None:
    sizes = [(375, 500)] * 50
    first, second = (crops_of(RandomResizedCrop(), sizes, epoch=epoch) for epoch in (0, 1))
    assert (first.boxes != second.boxes).any(axis=1).all()
    assert (first.flips != second.flips).any()
    height, width = np.full(1, 375), np.full(1, 500)
    alone = RandomResizedCrop().crops(height, width, RngKeys(0, 1, np.array([31])))
    assert np.array_equal(alone.boxes[0], second.boxes[31])
    assert alone.flips[0] == second.flips[31]


# ------------------------------------------------------------------ centre


@pytest.mark.parametrize("ratio", [IMAGENET_CENTER_RATIO, 1.0, 0.7])
def test_centre_crops_are_ffcvs(ratio: float) -> None:
    sizes = [(h, w) for h in range(1, 60) for w in range(1, 60)] + SIZES
    boxes = crops_of(CenterCrop(ratio), sizes).boxes
    for size, box in zip(sizes, boxes.tolist(), strict=True):
        if min(size) > 1 or ratio == 1:
            assert box == list(get_center_crop(*size, None, ratio))
        else:  # FFCV takes nothing of an image of one pixel
            assert box == [(size[0] - 1) // 2, (size[1] - 1) // 2, 1, 1]


def test_a_centre_crop_computed_by_hand() -> None:
    assert math.isclose(IMAGENET_CENTER_RATIO, 0.875)
    assert crops_of(CenterCrop(), [(375, 500)]).boxes.tolist() == [[23, 86, 328, 328]]
