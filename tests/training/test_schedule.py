"""The learning rate of every step, against ffcv-imagenet's formulas written down anew."""

import numpy as np
import pytest
from numpy.typing import NDArray

from rebar.training.schedule import LearningRateConfig, cyclic_lr, lr_at, step_lr

RECIPES = [16, 24, 32, 40, 56, 88]  # epochs
STEPS_PER_EPOCH = 312  # ImageNet in batches of 8 x 512, the incomplete one dropped


def reference(config: LearningRateConfig, epochs: int, steps_per_epoch: int) -> NDArray[np.float64]:
    """All steps' rates: the schedule at whole epochs, and straight lines over each epoch's steps between."""

    def at_epoch(epoch: int) -> float:
        if config.lr_schedule_type == "cyclic":
            corners = [0, config.lr_peak_epoch, epochs]
            return float(np.interp([epoch], corners, [1e-4 * config.lr, config.lr, 0])[0])
        return 0 if epoch >= epochs else config.step_ratio ** (epoch // config.step_length) * config.lr

    lines = [
        np.interp(np.arange(steps_per_epoch), [0, steps_per_epoch], [at_epoch(epoch), at_epoch(epoch + 1)])
        for epoch in range(epochs)
    ]
    return np.concatenate(lines)


def all_steps(config: LearningRateConfig, epochs: int, steps_per_epoch: int) -> list[float]:
    return [
        lr_at(step, config, epochs=epochs, steps_per_epoch=steps_per_epoch) for step in range(epochs * steps_per_epoch)
    ]


@pytest.mark.parametrize("epochs", RECIPES)
def test_every_step_of_a_recipe_has_the_references_rate(epochs: int) -> None:
    config = LearningRateConfig(lr=1.7, lr_schedule_type="cyclic", lr_peak_epoch=2)
    rates = all_steps(config, epochs, STEPS_PER_EPOCH)
    np.testing.assert_allclose(rates, reference(config, epochs, STEPS_PER_EPOCH), rtol=1e-12, atol=1e-15)
    assert max(rates) == rates[2 * STEPS_PER_EPOCH] == pytest.approx(1.7)


@pytest.mark.parametrize(("epochs", "length"), [(16, 5), (30, 30), (7, 1)])
def test_every_step_of_a_staircase_has_the_references_rate(epochs: int, length: int) -> None:
    config = LearningRateConfig(lr=0.5, lr_schedule_type="step", step_ratio=0.1, step_length=length)
    rates = all_steps(config, epochs, 10)
    np.testing.assert_allclose(rates, reference(config, epochs, 10), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1.7e-4),  # 1e-4 of the peak
        (312, (1.7e-4 + 1.7) / 2),  # half-way up
        (624, 1.7),
        (624 + 7 * 312, 0.85),  # half-way down, from epoch 2 to 16
        (16 * 312 - 1, 1.7 / 14 / 312),  # the last step
    ],
)
def test_rates_computed_by_hand(step: int, expected: float) -> None:
    config = LearningRateConfig(lr=1.7, lr_peak_epoch=2)
    assert lr_at(step, config, epochs=16, steps_per_epoch=312) == pytest.approx(expected, rel=1e-12)


def test_curves_computed_by_hand() -> None:
    assert cyclic_lr(0.5, peak=1.0, peak_epoch=1, epochs=3) == pytest.approx(0.50005)
    assert [cyclic_lr(epoch, peak=1.0, peak_epoch=1, epochs=3) for epoch in (1, 2, 3, 4)] == [1.0, 0.5, 0.0, 0.0]
    stairs = [step_lr(epoch, peak=8.0, ratio=0.5, length=2, epochs=5) for epoch in range(6)]
    assert stairs == [8.0, 8.0, 4.0, 4.0, 2.0, 0.0]


def test_without_a_rise_the_rate_begins_at_its_peak() -> None:
    config = LearningRateConfig(lr=1.0, lr_peak_epoch=0)
    assert [lr_at(step, config, epochs=4, steps_per_epoch=1) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
