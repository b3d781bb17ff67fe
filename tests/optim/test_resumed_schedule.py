"""Tests of rebar.optim.schedules: the learning rate of a run that is resumed with another number of epochs."""

import itertools
import math

import pytest

from rebar.optim.schedules import LearningRateConfig, ScheduleSpan, build_schedule

STEPS = 20  # per epoch
PEAK = 0.8
CONFIGS = {
    "cyclic": LearningRateConfig(lr=PEAK, lr_schedule_type="cyclic"),
    "step": LearningRateConfig(lr=PEAK, lr_schedule_type="step", step_length=3),
    "cosine": LearningRateConfig(lr=PEAK, lr_schedule_type="cosine", warmup_epochs=1, min_lr=0.01),
    "linear": LearningRateConfig(lr=PEAK, lr_schedule_type="linear", warmup_epochs=1),
    "onecycle": LearningRateConfig(lr=PEAK, lr_schedule_type="onecycle"),
    "constant": LearningRateConfig(lr=PEAK, lr_schedule_type="constant", warmup_epochs=1),
}


def rates(config: LearningRateConfig, span: ScheduleSpan, first: int = 0) -> list[float]:
    """Return the learning rates from step ``first`` to the end of the span."""
    learning_rate = build_schedule(config, span, steps_per_epoch=STEPS, global_batch=256)
    return [learning_rate(step) for step in range(first, span.epochs * STEPS)]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("epochs", "complete_steps"), [(8, 8 * STEPS), (8, 5 * STEPS + 7), (20, 10 * STEPS), (8, 3)])
def test_reset_schedule_reaches_the_schedule_of_the_new_length_without_a_jump(
    kind: str, epochs: int, complete_steps: int
) -> None:
    config, new_epochs = CONFIGS[kind], 2 * epochs
    used = rates(config, ScheduleSpan(epochs))[:complete_steps]
    span = ScheduleSpan(epochs).resumed(new_epochs, reset=True, step=complete_steps, lr=used[-1])
    resumed, target = rates(config, span, first=complete_steps), rates(config, ScheduleSpan(new_epochs))
    assert resumed[0] == pytest.approx(used[-1])
    assert max(resumed) <= PEAK * (1 + 1e-12)
    assert resumed[-1] == pytest.approx(target[-1])
    assert resumed[STEPS:] == pytest.approx(target[complete_steps + STEPS :])  # after one epoch
    distances = [abs(after - before) for after, before in zip(resumed, target[complete_steps:], strict=True)]
    weights = [1 - i / STEPS for i in range(STEPS)]
    expected = [w * abs(used[-1] - t) for w, t in zip(weights, target[complete_steps:], strict=False)]
    assert distances[:STEPS] == pytest.approx(expected)


@pytest.mark.parametrize("kind", CONFIGS)
def test_reset_schedule_takes_at_most_half_of_the_remaining_steps(kind: str) -> None:
    span = ScheduleSpan(8).resumed(9, reset=True, step=9 * STEPS - 4, lr=0.0)
    resumed, target = rates(CONFIGS[kind], span, first=9 * STEPS - 4), rates(CONFIGS[kind], ScheduleSpan(9))
    assert resumed[0] == 0
    assert resumed[2:] == pytest.approx(target[-2:])


def test_the_learning_rate_never_rises_in_a_span_that_joins_a_decaying_schedule_from_above() -> None:
    span = ScheduleSpan(8).resumed(16, reset=True, step=10 * STEPS, lr=PEAK)
    resumed = rates(CONFIGS["cyclic"], span, first=10 * STEPS)
    assert all(after <= before for before, after in itertools.pairwise(resumed))


@pytest.mark.parametrize("kind", CONFIGS)
def test_extended_run_without_reset_follows_the_schedule_of_the_new_length(kind: str) -> None:
    span = ScheduleSpan(8).resumed(16, reset=False, step=8 * STEPS, lr=0.0)
    assert rates(CONFIGS[kind], span) == rates(CONFIGS[kind], ScheduleSpan(16))


def test_the_same_command_does_not_reset_the_schedule_again() -> None:
    span = ScheduleSpan(8).resumed(16, reset=True, step=8 * STEPS, lr=0.0)
    assert span.resumed(16, reset=True, step=9 * STEPS, lr=0.1) == span
    assert span.resumed(20, reset=True, step=9 * STEPS, lr=0.1) == ScheduleSpan(20, True, 9 * STEPS, 0.1)


def test_a_frozen_learning_rate_overrides_the_span() -> None:
    span = ScheduleSpan(8).resumed(16, reset=True, step=8 * STEPS, lr=0.0)
    for frozen, last, expected in ((0.3, 0.1, 0.3), (0.0, 0.1, 0.1), (0.0, 0.0, PEAK)):
        learning_rate = build_schedule(
            CONFIGS["cyclic"], span, steps_per_epoch=STEPS, global_batch=256, frozen_lr=frozen, last_lr=last
        )
        assert learning_rate(200) == expected


@pytest.mark.parametrize(("epochs", "peak_epoch"), [(1, 2), (2, 2), (3, 2)])
def test_cyclic_decays_only_if_its_peak_is_before_the_last_epoch(epochs: int, peak_epoch: int) -> None:
    found = rates(LearningRateConfig(lr=PEAK, lr_peak_epoch=peak_epoch), ScheduleSpan(epochs))
    rises = all(after > before for before, after in itertools.pairwise(found))
    assert rises == (peak_epoch >= epochs)
    assert all(math.isfinite(rate) and 0 < rate <= PEAK for rate in found)


def test_schedule_span_round_trips_through_state_dict() -> None:
    span = ScheduleSpan(epochs=12, reset=True, from_step=57, from_lr=0.1)
    assert ScheduleSpan.from_state(span.state_dict()) == span
