"""Random numbers are reproducible functions of (seed, epoch, stream, sample, copy, draw)."""

import numpy as np
import pytest

from rebar.loading.rng import RngKeys, Stream, random_bits, uniforms

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
        (1, 2, "flip"),
        (1, 2, "inversion"),
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
