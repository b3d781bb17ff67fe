"""The operations of RandAugment and TrivialAugment are torchvision's, sample by sample."""

import dataclasses

import numpy as np
import pytest
import torch

from rebar.augment import color, operations
from rebar.augment.operations import (
    OPERATIONS,
    Strengths,
    _applied,
    _drawn_magnitudes,
    apply_operations,
    rand_augment,
    signed,
    trivial_augment,
)
from rebar.augment.rng import BatchPosition
from rebar.models.torchvision_compat import import_torchvision

import_torchvision()
from torchvision.transforms import v2  # noqa: E402

BINS = (0, 1, 9, 16, 30)
POLICIES = {
    "RandAugment": (v2.RandAugment(), operations.strengths(40, 32)),
    "TrivialAugment": (v2.TrivialAugmentWide(), operations.WIDE),
}


def theirs(policy: v2.Transform, images: torch.Tensor, name: str, magnitude: float) -> torch.Tensor:
    """torchvision's own step, given the operation and the magnitude that it would otherwise draw."""
    changed: torch.Tensor = policy._apply_image_or_video_transform(
        images, name, magnitude, interpolation=policy.interpolation, fill={torch.Tensor: None}
    )
    return changed


def assert_alike(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal, but for a level in one of a hundred values, where a float was rounded otherwise."""
    assert ours.dtype == expected.dtype == torch.uint8
    difference = (ours.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=OPERATIONS)
def test_every_operation_at_every_strength_is_torchvisions(policy: str, number: int, images: torch.Tensor) -> None:
    torchvisions, strengths = POLICIES[policy]
    magnitudes_of, has_sign = torchvisions._AUGMENTATION_SPACE[OPERATIONS[number]]
    magnitudes = magnitudes_of(31, 40, 32)
    for bin_number in BINS:
        magnitude = 0.0 if magnitudes is None else float(magnitudes[bin_number])
        assert strengths.magnitudes(np.array([number]), np.array([bin_number])) == magnitude
        for sign in (1, -1) if has_sign else (1,):
            ours = apply_operations(images, np.full(6, number), np.full(6, sign * magnitude))
            assert_alike(ours, theirs(torchvisions, images, OPERATIONS[number], sign * magnitude))


def test_a_mixed_batch_is_each_sample_on_its_own(images: torch.Tensor) -> None:
    many = images.repeat(5, 1, 1, 1)
    rng = np.random.default_rng(0)
    operations = rng.permutation(np.arange(30) % len(OPERATIONS))
    strengths: Strengths = operations.WIDE
    magnitudes = signed(operations, strengths.magnitudes(operations, rng.integers(0, 31, 30)), rng.random(30))
    together = apply_operations(many, operations, magnitudes)
    assert together.is_contiguous(memory_format=torch.channels_last)
    for row in range(30):
        chosen = slice(row, row + 1)
        alone = apply_operations(many[chosen], operations[chosen], magnitudes[chosen])
        assert_alike(together[chosen], alone)
        expected = theirs(v2.TrivialAugmentWide(), many[row], OPERATIONS[operations[row]], float(magnitudes[row]))
        assert_alike(together[row], expected)


@pytest.mark.parametrize("shift", [-0.5, -0.21, 0.0, 0.1, 0.37])
def test_the_hue_is_torchvisions(shift: float, images: torch.Tensor) -> None:
    assert_alike(color.adjust_hue(images, np.full(6, shift)), v2.functional.adjust_hue(images, shift))


def test_signs_turn_only_what_has_two_directions() -> None:
    operations = np.arange(len(OPERATIONS))
    turned = signed(operations, np.ones(14), np.full(14, 0.2)) < 0
    space = v2.RandAugment()._AUGMENTATION_SPACE
    assert [OPERATIONS[number] for number in np.flatnonzero(turned)] == [name for name in space if space[name][1]]
    assert list(space) == list(OPERATIONS)


def test_the_draws_are_even(images: torch.Tensor) -> None:
    """Of 14,000 images each operation gets its share, so a marked one changes in the expected share of cases."""
    position = BatchPosition(seed=3, step=5, first=0, count=14_000)
    flat = torch.full((14_000, 3, 4, 4), 100, dtype=torch.uint8)
    changed = trivial_augment(flat, position)
    dark = (changed[:, 0, 2, 2] != 100).float().mean()
    # an image of one colour is changed by brightness, posterizing below 8 bits and solarizing, and by shifts
    # that bring the black outside to this pixel; the first three alone are 3 of 14
    assert 0.15 < dark < 0.45
    twice = rand_augment(flat, position, num_ops=2, magnitude=0)
    assert torch.equal(twice, flat)
    assert not torch.equal(rand_augment(flat, position, num_ops=2, magnitude=30), flat)


def test_randaugment_skips_and_varies_as_told(images: torch.Tensor) -> None:
    position = BatchPosition(seed=1, step=2, first=0, count=4_000)
    never = rand_augment(images, dataclasses.replace(position, count=6), num_ops=2, magnitude=20, probability=0)
    assert torch.equal(never, images)
    applied = _applied(position, 2, 0.3)
    assert applied.mean() == pytest.approx(0.3, abs=0.02)
    magnitudes = _drawn_magnitudes(position, 2, 21, 1.5)
    assert magnitudes.mean() == pytest.approx(21, abs=0.1)
    assert magnitudes.std() == pytest.approx(1.5, abs=0.1)
    assert abs(np.corrcoef(magnitudes.T)[0, 1]) < 0.05
    assert _drawn_magnitudes(position, 2, 29, 5).max() == 30
    assert (_drawn_magnitudes(position, 2, 9, 0) == 9).all()
