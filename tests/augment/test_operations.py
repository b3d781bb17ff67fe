"""RandAugment and TrivialAugment equal torchvision's, image by image. Every registered operation is compared."""

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from rebar.augment.operations import (
    OPERATIONS,
    TRIVIALAUGMENT_RANGES,
    apply_operations,
    apply_signs,
    draw_magnitudes,
    operation_mask,
    rand_augment,
    randaugment_ranges,
    trivial_augment,
)
from rebar.loading.rng import BatchPosition

BINS = (0, 1, 9, 16, 30)
NAMES = list(OPERATIONS)
POLICIES = {
    "RandAugment": (v2.RandAugment(), randaugment_ranges(40, 32)),
    "TrivialAugment": (v2.TrivialAugmentWide(), TRIVIALAUGMENT_RANGES),
}


def torchvision_operation(policy: v2.Transform, images: torch.Tensor, name: str, magnitude: float) -> torch.Tensor:
    """Apply torchvision's operation at a given magnitude."""
    changed: torch.Tensor = policy._apply_image_or_video_transform(
        images, name, magnitude, interpolation=policy.interpolation, fill={torch.Tensor: None}
    )
    return changed


def assert_close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that at most one value in a hundred differs, by one level of rounding."""
    assert ours.dtype == expected.dtype == torch.uint8
    difference = (ours.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("policy_name", POLICIES)
@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_operation_equals_torchvision_at_every_magnitude(policy_name: str, number: int, images: torch.Tensor) -> None:
    policy, ranges = POLICIES[policy_name]
    magnitudes_of, is_signed = policy._AUGMENTATION_SPACE[NAMES[number]]
    magnitudes = magnitudes_of(31, 40, 32)
    for bin_number in BINS:
        magnitude = 0.0 if magnitudes is None else float(magnitudes[bin_number])
        assert ranges.magnitudes(np.array([number]), np.array([bin_number])) == magnitude
        for sign in (1, -1) if is_signed else (1,):
            ours = apply_operations(images, np.full(6, number), np.full(6, sign * magnitude))
            assert_close(ours, torchvision_operation(policy, images, NAMES[number], sign * magnitude))


def test_apply_operations_on_a_mixed_batch_equals_each_image_alone(images: torch.Tensor) -> None:
    batch = images.repeat(5, 1, 1, 1)
    rng = np.random.default_rng(0)
    operations = rng.permutation(np.arange(30) % len(NAMES))
    unsigned = TRIVIALAUGMENT_RANGES.magnitudes(operations, rng.integers(0, 31, 30))
    magnitudes = apply_signs(operations, unsigned, rng.random(30))
    together = apply_operations(batch, operations, magnitudes)
    assert together.is_contiguous(memory_format=torch.channels_last)
    for row in range(30):
        part = slice(row, row + 1)
        assert_close(together[part], apply_operations(batch[part], operations[part], magnitudes[part]))
        name, magnitude = NAMES[operations[row]], float(magnitudes[row])
        assert_close(together[row], torchvision_operation(v2.TrivialAugmentWide(), batch[row], name, magnitude))


def test_operations_and_signs_equal_torchvision() -> None:
    space = v2.RandAugment()._AUGMENTATION_SPACE
    assert list(space) == NAMES
    negated = apply_signs(np.arange(14), np.ones(14), np.full(14, 0.2)) < 0
    assert [NAMES[number] for number in np.flatnonzero(negated)] == [name for name in space if space[name][1]]


def test_trivial_augment_draws_operations_evenly() -> None:
    position = BatchPosition(seed=3, step=5, first=0, count=14_000)
    constant = torch.full((14_000, 3, 4, 4), 100, dtype=torch.uint8)
    changed = (trivial_augment(constant, position)[:, 0, 2, 2] != 100).float().mean()
    # A constant image is changed by brightness, posterizing and solarizing (3 of 14 operations), and by shifts that
    # move the black outside onto this pixel.
    assert 0.15 < changed < 0.45


def test_rand_augment_at_magnitude_zero_keeps_a_constant_image() -> None:
    position = BatchPosition(seed=3, step=5, first=0, count=1_400)
    constant = torch.full((1_400, 3, 4, 4), 100, dtype=torch.uint8)
    assert torch.equal(rand_augment(constant, position, num_ops=2, magnitude=0), constant)
    assert not torch.equal(rand_augment(constant, position, num_ops=2, magnitude=30), constant)


def test_rand_augment_applies_probability_and_noise(images: torch.Tensor) -> None:
    position = BatchPosition(seed=1, step=2, first=0, count=4_000)
    never = rand_augment(images, dataclasses.replace(position, count=6), num_ops=2, magnitude=20, probability=0)
    assert torch.equal(never, images)
    assert operation_mask(position, 2, 0.3).mean() == pytest.approx(0.3, abs=0.02)
    magnitudes = draw_magnitudes(position, 2, 21, 1.5)
    assert magnitudes.mean() == pytest.approx(21, abs=0.1)
    assert magnitudes.std() == pytest.approx(1.5, abs=0.1)
    assert abs(np.corrcoef(magnitudes.T)[0, 1]) < 0.05
    assert draw_magnitudes(position, 2, 29, 5).max() == 30
    assert (draw_magnitudes(position, 2, 9, 0) == 9).all()
