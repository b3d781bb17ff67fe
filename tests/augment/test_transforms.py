"""Color operations and color jitter equal torchvision's."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from rebar.augment.transforms import adjust_hue, color_jitter
from rebar.loading.rng import BatchPosition, Stream

ADJUSTMENTS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


@pytest.mark.parametrize("step", range(4))
def test_color_jitter_equals_torchvision_in_the_order_of_the_batch(step: int, images: torch.Tensor) -> None:
    position = BatchPosition(seed=1, step=step, first=12, count=6)
    ours = color_jitter(images, position, strength=0.4, hue=0.1)
    draws = 2 * position.uniforms(Stream.COLOR_JITTER, 4) - 1
    factors = draws * [0.4, 0.4, 0.4, 0.1] + [1, 1, 1, 0]
    assert np.ptp(factors[:, 0]) > 0.1
    order = position.generator(Stream.COLOR_JITTER).permutation(4)
    for row in range(6):
        expected = images[row]
        for number in order:
            expected = ADJUSTMENTS[number](expected, float(factors[row, number]))
        # a difference of one level in one adjustment may grow in the next
        assert (ours[row].int() - expected.int()).abs().max() <= 3


def test_color_jitter_order_differs_between_batches() -> None:
    orders = {tuple(BatchPosition(0, step, 0, 1).generator(Stream.COLOR_JITTER).permutation(4)) for step in range(200)}
    assert len(orders) == 24


def test_color_jitter_without_strength_changes_the_hue_only(images: torch.Tensor) -> None:
    position = BatchPosition(seed=1, step=0, first=0, count=6)
    gray = images[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(color_jitter(gray, position, strength=0.0, hue=0.5), gray)
    assert not torch.equal(color_jitter(images, position, strength=0.0, hue=0.5), images)


@pytest.mark.parametrize("shift", [-0.5, -0.21, 0.0, 0.1, 0.37])
def test_adjust_hue_equals_torchvision(shift: float, images: torch.Tensor) -> None:
    difference = (adjust_hue(images, np.full(6, shift)).int() - F.adjust_hue(images, shift).int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01
