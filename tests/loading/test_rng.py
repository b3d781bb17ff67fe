"""Random numbers, crops and flips are reproducible functions of (seed, epoch, stream, sample, copy, draw)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rebar.loading.rng import (
    CenterCrop,
    Cropper,
    Crops,
    RandomResizedCrop,
    RngKeys,
    Stream,
    random_bits,
    uniforms,
)

MANY = np.arange(100_000)


def test_random_bits_repeat_for_equal_arguments() -> None:
    first = random_bits(RngKeys(1, 2, MANY), Stream.CROP, 3)
    assert first.shape == (len(MANY), 3)
    assert first.dtype == np.uint64
    assert np.array_equal(first, random_bits(RngKeys(1, 2, MANY), Stream.CROP, 3))


def test_random_bits_of_a_sample_do_not_depend_on_the_other_samples() -> None:
    all_samples = random_bits(RngKeys(1, 2, MANY), Stream.CROP, 3)
    some = np.array([99_999, 5, 5, 77])
    assert np.array_equal(random_bits(RngKeys(1, 2, some), Stream.CROP, 3), all_samples[some])


def test_random_bits_with_more_draws_start_with_the_same_draws() -> None:
    three, one = (random_bits(RngKeys(1, 2, MANY[:9]), Stream.CROP, draws) for draws in (3, 1))
    assert np.array_equal(three[:, :1], one)


def test_uniforms_are_uncorrelated_between_seeds_epochs_and_streams() -> None:
    arguments = [
        (1, 2, Stream.CROP),
        (2, 1, Stream.CROP),
        (1, 3, Stream.CROP),
        (1, 2, Stream.FLIP),
        (-1, 2, Stream.CROP),
    ]
    drawn = [uniforms(RngKeys(seed, epoch, MANY), stream)[:, 0] for seed, epoch, stream in arguments]
    correlations = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(correlations).max() < 0.02  # six standard deviations


def test_uniforms_are_uncorrelated_between_neighboring_samples_and_draws() -> None:
    drawn = uniforms(RngKeys(0, 0, MANY), Stream.CROP, 2)
    for a, b in [(drawn[1:, 0], drawn[:-1, 0]), (drawn[:, 0], drawn[:, 1]), (drawn[1:, 0], drawn[:-1, 1])]:
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.02


@pytest.mark.parametrize("stream", list(Stream))
def test_uniforms_are_uniform_in_every_stream(stream: Stream) -> None:
    drawn = uniforms(RngKeys(0, 0, MANY), stream)[:, 0]
    assert 0 <= drawn.min() < 1e-3
    assert 1 - 1e-3 < drawn.max() < 1
    assert drawn.mean() == pytest.approx(1 / 2, abs=0.005)
    assert drawn.var() == pytest.approx(1 / 12, abs=0.003)
    counts, _ = np.histogram(drawn, bins=100, range=(0, 1))
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert 40 < chi_square < 180  # expected 99, standard deviation 14


def test_random_bits_accept_large_and_negative_arguments() -> None:
    for seed in (-1, 2**63, 2**64 - 1):
        assert len(set(random_bits(RngKeys(seed, 10**6, np.array([0, 2**40])), Stream.ORDER)[:, 0])) == 2
    assert random_bits(RngKeys(0, 0, np.array([], np.int64)), Stream.ORDER).shape == (0, 1)


def test_random_bits_equal_recorded_values() -> None:
    """Changing these values breaks the resuming of existing runs."""
    bits = random_bits(RngKeys(42, 3, np.array([0, 1, 1_281_166])), Stream.CROP, 2)
    assert bits.tolist() == [
        [17842620195115861762, 10685592039321901091],
        [11652876134634298558, 5554980716963223155],
        [6773978822889036938, 15616788418072106647],
    ]
    assert uniforms(RngKeys(0, 0, np.arange(3)), Stream.ORDER)[:, 0].tolist() == [
        0.47141042966848024,
        0.7816823175847682,
        0.526639521168031,
    ]


def test_uniforms_differ_between_copies_of_a_sample() -> None:
    samples, copies = np.array([5, 5, 5, 6]), np.array([0, 1, 2, 0])
    found = uniforms(RngKeys(0, 3, samples, copies), Stream.CROP, 2)
    assert len(set(found[:, 0])) == 4
    np.testing.assert_array_equal(found[[0, 3]], uniforms(RngKeys(0, 3, np.array([5, 6])), Stream.CROP, 2))


# ------------------------------------------------------------------ crops and flips

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
