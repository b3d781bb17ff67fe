"""Crops are inside the image, follow torchvision's distribution, and are reproducible."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rebar.loading.crops import CenterCrop, Cropper, Crops, RandomResizedCrop
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


@settings(deadline=None, max_examples=100)
@given(
    sizes=st.lists(st.tuples(side, side), min_size=1, max_size=100),
    seed=st.integers(),
    low=st.floats(0.001, 1),
    ratio=st.floats(0.01, 1),
)
def test_crops_are_inside_the_image(sizes: list[tuple[int, int]], seed: int, low: float, ratio: float) -> None:
    default = crops_of(RandomResizedCrop(), SIZES + sizes, seed=seed)
    assert_inside(default.boxes, SIZES + sizes)
    assert_inside(crops_of(CenterCrop(), SIZES + sizes).boxes, SIZES + sizes)
    custom = RandomResizedCrop(scale=(low, 1.0), ratio=(ratio, 1 / ratio))
    assert_inside(crops_of(custom, sizes, seed=seed).boxes, sizes)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((60, 1000), (0, 460, 60, 80)),
        ((1000, 60), (460, 0, 80, 60)),
        ((1, 1000), (0, 499, 1, 1)),
        ((1000, 1), (499, 0, 1, 1)),
    ],
)
def test_random_resized_crop_falls_back_to_a_center_crop(
    size: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    large = RandomResizedCrop(scale=(0.9, 1.0))  # no crop of this area has an allowed aspect ratio
    assert tuple(crops_of(large, [size]).boxes[0]) == expected


def test_random_resized_crop_flips_half_of_the_images() -> None:
    sizes = [(375, 500)] * 10_000
    random = crops_of(RandomResizedCrop(), sizes)
    assert random.flips.dtype == np.bool_
    assert random.flips.mean() == pytest.approx(0.5, abs=0.03)
    left = random.boxes[:, 1].astype(float)
    assert abs(np.corrcoef(random.flips, left)[0, 1]) < 0.06  # flips are independent of the box
    assert not crops_of(RandomResizedCrop(flip_probability=0), sizes).flips.any()
    assert crops_of(RandomResizedCrop(flip_probability=1), sizes).flips.all()
    assert not crops_of(CenterCrop(), sizes).flips.any()


def test_random_crops_change_with_the_epoch_but_not_with_the_other_samples() -> None:
    sizes = [(375, 500)] * 50
    first, second = (crops_of(RandomResizedCrop(), sizes, epoch=epoch) for epoch in (0, 1))
    assert (first.boxes != second.boxes).any(axis=1).all()
    assert (first.flips != second.flips).any()
    height, width = np.full(1, 375), np.full(1, 500)
    alone = RandomResizedCrop().crops(height, width, RngKeys(0, 1, np.array([31])))
    assert np.array_equal(alone.boxes[0], second.boxes[31])
    assert alone.flips[0] == second.flips[31]


def test_center_crop_matches_a_hand_computed_box() -> None:
    assert crops_of(CenterCrop(), [(375, 500)]).boxes.tolist() == [[23, 86, 328, 328]]
