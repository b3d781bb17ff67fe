"""Tests of rebar.optim.schedules.ScheduleSpan and lr_in_span: the schedule of a resumed run."""

import itertools

import pytest

from rebar.optim.schedules import ScheduleSpan, lr_in_span

STEPS = 10


def triangle(step: int, epochs: int) -> float:
    """Rise over two epochs, then decay to 0 at the last."""
    epoch = step / STEPS
    return epoch / 2 if epoch < 2 else max(0.0, (epochs - epoch) / (epochs - 2))


def constant(step: int, epochs: int) -> float:
    return 1.0


def rates(span: ScheduleSpan, schedule: object = triangle, first: int = 0) -> list[float]:
    return [
        lr_in_span(step, span, schedule, steps_per_epoch=STEPS, blend_epochs=2)  # type: ignore[arg-type]
        for step in range(first, span.epochs * STEPS)
    ]


def test_lr_in_span_without_reset_equals_the_schedule() -> None:
    assert rates(ScheduleSpan(epochs=5)) == [triangle(step, 5) for step in range(50)]


@pytest.mark.parametrize("from_lr", [0.0, 0.02, 0.7])
@pytest.mark.parametrize("schedule", [triangle, constant])
@pytest.mark.parametrize("from_step", [50, 57])
def test_lr_in_span_after_reset_blends_from_the_last_lr(from_lr: float, schedule: object, from_step: int) -> None:
    span = ScheduleSpan(epochs=12, reset=True, first_epoch=5, from_step=from_step, from_lr=from_lr)
    found = rates(span, schedule, first=from_step)
    assert found[0] == pytest.approx(from_lr)
    assert max(abs(after - before) for before, after in itertools.pairwise(found)) < 0.09
    assert min(found) >= 0
    expected = [schedule(step - 50, 7) for step in range(from_step, 120)]  # type: ignore[operator]
    assert found[20:] == pytest.approx(expected[20:])


def test_schedule_span_round_trips_through_state_dict() -> None:
    span = ScheduleSpan(epochs=12, reset=True, first_epoch=5, from_step=57, from_lr=0.1)
    assert ScheduleSpan.from_state(span.state_dict()) == span
