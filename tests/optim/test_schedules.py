"""Learning rate schedules, compared with ffcv-imagenet's formulas and with torch's schedulers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

from rebar.optim.schedules import SCHEDULES, LearningRateConfig, build_base_schedule, cyclic_lr, peak_lr, step_lr
from rebar.training.config import unused_in_section

EPOCHS_OF_RECIPES = [16, 24, 32, 40, 56, 88]  # epochs
STEPS_PER_EPOCH = 312  # ImageNet, global batch 8 x 512, drop_last


def reference(config: LearningRateConfig, epochs: int, steps_per_epoch: int) -> NDArray[np.float64]:
    """Return the learning rate of every step: the schedule at epoch starts, interpolated linearly between."""

    def at_epoch(epoch: int) -> float:
        if config.lr_schedule_type == "cyclic":
            corners = [0, config.lr_peak_epoch, epochs]
            return float(np.interp([epoch], corners, [1e-4 * config.lr, config.lr, 0])[0])
        return 0 if epoch >= epochs else config.step_ratio ** (epoch // config.step_length) * config.lr

    per_epoch = [
        np.interp(np.arange(steps_per_epoch), [0, steps_per_epoch], [at_epoch(epoch), at_epoch(epoch + 1)])
        for epoch in range(epochs)
    ]
    return np.concatenate(per_epoch)


def all_steps(config: LearningRateConfig, epochs: int, steps_per_epoch: int) -> list[float]:
    rate = build_base_schedule(config, epochs=epochs, steps_per_epoch=steps_per_epoch, peak=config.lr)
    return [rate(step) for step in range(epochs * steps_per_epoch)]


@pytest.mark.parametrize("epochs", EPOCHS_OF_RECIPES)
def test_cyclic_schedule_equals_ffcv_imagenet(epochs: int) -> None:
    config = LearningRateConfig(lr=1.7, lr_schedule_type="cyclic", lr_peak_epoch=2)
    rates = all_steps(config, epochs, STEPS_PER_EPOCH)
    np.testing.assert_allclose(rates, reference(config, epochs, STEPS_PER_EPOCH), rtol=1e-12, atol=1e-15)
    assert max(rates) == rates[2 * STEPS_PER_EPOCH] == pytest.approx(1.7)


@pytest.mark.parametrize(("epochs", "length"), [(16, 5), (30, 30), (7, 1)])
def test_step_schedule_equals_ffcv_imagenet(epochs: int, length: int) -> None:
    config = LearningRateConfig(lr=0.5, lr_schedule_type="step", step_ratio=0.1, step_length=length)
    rates = all_steps(config, epochs, 10)
    np.testing.assert_allclose(rates, reference(config, epochs, 10), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1.7e-4),  # 1e-4 of the peak
        (312, (1.7e-4 + 1.7) / 2),  # half of the rise
        (624, 1.7),
        (624 + 7 * 312, 0.85),  # half of the decay from epoch 2 to 16
        (16 * 312 - 1, 1.7 / 14 / 312),  # the last step
    ],
)
def test_cyclic_schedule_examples(step: int, expected: float) -> None:
    config = LearningRateConfig(lr=1.7, lr_peak_epoch=2)
    rate = build_base_schedule(config, epochs=16, steps_per_epoch=312, peak=1.7)
    assert rate(step) == pytest.approx(expected, rel=1e-12)


def test_cyclic_lr_and_step_lr_examples() -> None:
    assert cyclic_lr(0.5, peak=1.0, peak_epoch=1, epochs=3) == pytest.approx(0.50005)
    assert [cyclic_lr(epoch, peak=1.0, peak_epoch=1, epochs=3) for epoch in (1, 2, 3, 4)] == [1.0, 0.5, 0.0, 0.0]
    stepped = [step_lr(epoch, peak=8.0, ratio=0.5, length=2, epochs=5) for epoch in range(6)]
    assert stepped == [8.0, 8.0, 4.0, 4.0, 2.0, 0.0]


def test_cyclic_schedule_without_rise_starts_at_peak() -> None:
    config = LearningRateConfig(lr=1.0, lr_peak_epoch=0)
    assert all_steps(config, 4, 1) == [1.0, 0.75, 0.5, 0.25]


# ------------------------------------------------------------------ against torch's schedulers

STEPS, EPOCHS = 40, 4


def torch_rates(make: Callable[[torch.optim.Optimizer], LRScheduler], peak: float = 0.8) -> list[float]:
    """Return the learning rates of a torch scheduler that is stepped at every step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler, rates = make(optimizer), []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def our_rates(**settings: Any) -> list[float]:
    return all_steps(LearningRateConfig(lr=0.8, **settings), EPOCHS, STEPS // EPOCHS)


def with_warmup(make: Callable[[torch.optim.Optimizer], LRScheduler]) -> Callable[[torch.optim.Optimizer], LRScheduler]:
    return lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer, start_factor=0.01, total_iters=10), make(optimizer)], milestones=[10]
    )


WARMUP = {"warmup_epochs": 1, "warmup_factor": 0.01}


@pytest.mark.parametrize(
    ("settings", "scheduler"),
    [
        ({"lr_schedule_type": "cosine"}, lambda o: CosineAnnealingLR(o, STEPS)),
        ({"lr_schedule_type": "cosine", "min_lr": 0.1}, lambda o: CosineAnnealingLR(o, STEPS, eta_min=0.1)),
        ({"lr_schedule_type": "cosine", **WARMUP}, with_warmup(lambda o: CosineAnnealingLR(o, STEPS - 10))),
        ({"lr_schedule_type": "linear"}, lambda o: LinearLR(o, 1.0, 0.0, STEPS)),
        ({"lr_schedule_type": "linear", "min_lr": 0.2}, lambda o: LinearLR(o, 1.0, 0.25, STEPS)),
        ({"lr_schedule_type": "linear", **WARMUP}, with_warmup(lambda o: LinearLR(o, 1.0, 0.0, STEPS - 10))),
        ({"lr_schedule_type": "polynomial"}, lambda o: PolynomialLR(o, STEPS, power=2.0)),
        ({"lr_schedule_type": "polynomial", "decay_power": 3}, lambda o: PolynomialLR(o, STEPS, power=3.0)),
        (
            {"lr_schedule_type": "polynomial", "decay_power": 0.5, **WARMUP},
            with_warmup(lambda o: PolynomialLR(o, STEPS - 10, power=0.5)),
        ),
        ({"lr_schedule_type": "constant"}, lambda o: ConstantLR(o, 1.0)),
        ({"lr_schedule_type": "constant", **WARMUP}, with_warmup(lambda o: ConstantLR(o, 1.0))),
        ({"lr_schedule_type": "onecycle"}, lambda o: OneCycleLR(o, 0.8, STEPS)),
        (
            {"lr_schedule_type": "onecycle", "onecycle_rise": 0.5, "onecycle_start": 10, "onecycle_end": 100},
            lambda o: OneCycleLR(o, 0.8, STEPS, pct_start=0.5, div_factor=10, final_div_factor=100),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_lr_at_equals_torch_scheduler(settings: dict[str, Any], scheduler: Callable[..., LRScheduler]) -> None:
    np.testing.assert_allclose(our_rates(**settings), torch_rates(scheduler), rtol=1e-6, atol=1e-9)


def test_step_schedule_equals_torch_at_epoch_starts() -> None:
    stepped = our_rates(lr_schedule_type="step", step_length=2, step_ratio=0.1)[::10]
    np.testing.assert_allclose(stepped, torch_rates(lambda o: StepLR(o, 20, 0.1))[::10])
    with_warmup_rates = our_rates(lr_schedule_type="step", step_length=2, step_ratio=0.1, **WARMUP)
    assert with_warmup_rates[:11:10] == pytest.approx([0.008, 0.8])


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_lr_at_is_in_range_in_runs_of_one_or_two_steps(kind: Any, epochs: int) -> None:
    config = LearningRateConfig(
        lr=1.0, lr_schedule_type=kind, warmup_epochs=1 if kind in ("cosine", "polynomial") else 0
    )
    rates = all_steps(config, epochs, 1)
    assert all(0 <= rate <= 1 for rate in rates)


@pytest.mark.parametrize(
    ("settings", "peak"),
    [
        ({}, 0.4),
        ({"lr_scaling": "linear"}, 1.6),
        ({"lr_scaling": "linear", "base_batch": 512}, 0.8),
        ({"lr_scaling": "sqrt"}, 0.8),
        ({"lr_scaling": "linear", "max_lr": 0.3}, 0.3),
    ],
    ids=str,
)
def test_peak_lr_scales_with_global_batch(settings: dict[str, Any], peak: float) -> None:
    config = LearningRateConfig(lr=0.4, lr_schedule_type="constant", **settings)
    assert peak_lr(config, global_batch=1024) == pytest.approx(peak)
    assert build_base_schedule(config, epochs=2, steps_per_epoch=4, peak=peak)(3) == peak


@pytest.mark.parametrize(("end", "power"), [(0.0, 2.0), (0.1, 2.0), (0.0001, 1.0)])
def test_polynomial_schedule_equals_its_formula(end: float, power: float) -> None:
    rates = our_rates(lr_schedule_type="polynomial", min_lr=end, decay_power=power)
    expected = [end + (0.8 - end) * (1 - step / STEPS) ** power for step in range(STEPS)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_options_of_other_schedules_are_reported_as_unused() -> None:
    config = LearningRateConfig(lr_schedule_type="cyclic", warmup_epochs=5, min_lr=0.1, step_length=3, decay_power=1)
    named = {sentence.split(" ")[0] for sentence in unused_in_section("lr", config, config.conditions())}
    assert named == {"lr.step_length", "lr.warmup_epochs", "lr.min_lr", "lr.decay_power"}
    cosine = LearningRateConfig(lr_schedule_type="cosine", warmup_epochs=5, warmup_factor=0.1, min_lr=0.1)
    assert not list(unused_in_section("lr", cosine, cosine.conditions()))
