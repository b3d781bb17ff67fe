"""Colour jitter: torchvision's adjustments by amounts of the right distribution."""

import numpy as np
import pytest
import torch

from rebar.augment.color import color_jitter
from rebar.augment.rng import BatchPosition
from rebar.loading.rng import Stream
from rebar.models.torchvision_compat import import_torchvision

import_torchvision()
from torchvision.transforms.v2 import functional as F  # noqa: E402

THEIRS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


@pytest.mark.parametrize("step", range(4))
def test_each_image_gets_torchvisions_adjustments_in_the_batchs_order(step: int, images: torch.Tensor) -> None:
    position = BatchPosition(seed=1, step=step, first=12, count=6)
    ours = color_jitter(images, position, strength=0.4, hue=0.1)
    draws = 2 * position.uniforms(Stream.COLOR_JITTER, 4) - 1
    amounts = draws * [0.4, 0.4, 0.4, 0.1] + [1, 1, 1, 0]
    assert np.ptp(amounts[:, 0]) > 0.1
    order = position.generator(Stream.COLOR_JITTER).permutation(4)
    for row in range(6):
        expected = images[row]
        for number in order:
            expected = THEIRS[number](expected, float(amounts[row, number]))
        # a level's difference in one step may grow in the next
        assert (ours[row].int() - expected.int()).abs().max() <= 3


def test_orders_differ_between_batches() -> None:
    orders = {tuple(BatchPosition(0, step, 0, 1).generator(Stream.COLOR_JITTER).permutation(4)) for step in range(200)}
    assert len(orders) == 24


def test_without_strength_only_the_hue_turns(images: torch.Tensor) -> None:
    position = BatchPosition(seed=1, step=0, first=0, count=6)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(color_jitter(grey, position, strength=0.0, hue=0.5), grey)
    assert not torch.equal(color_jitter(images, position, strength=0.0, hue=0.5), images)
