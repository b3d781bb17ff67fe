"""Tests of rebar.training.control; votes of several ranks are tested in tests/test_resume.py."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from rebar.training.control import RunControl
from rebar.training.distributed import World
from rebar.training.preemption import StopReason, StopRequest


def start(world: World, used_seconds: float = 0.0, **options: Any) -> tuple[RunControl, StopRequest]:
    control, request = RunControl(world, **options), StopRequest()
    control.start(request, used_seconds=used_seconds)
    return control, request


def saved_after(control: RunControl, steps: int) -> list[int]:
    """Return the steps after which a checkpoint is due."""
    return [step for step in range(1, steps + 1) if control.after_step(step) is StopReason.SAVE]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every_steps": 3}, [3, 6]),
        ({"every_minutes": 1e-9}, [1, 2, 3, 4, 5, 6, 7]),
        ({"every_minutes": 10.0}, []),
        ({}, []),
    ],
    ids=str,
)
def test_after_step_saves_by_steps_and_by_time(options: dict[str, Any], expected: list[int], world: World) -> None:
    control, _ = start(world, **options)
    assert saved_after(control, 7) == expected


def test_after_step_measures_the_time_since_the_last_save(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    control, _ = start(world, every_minutes=1.0)
    now += 61
    assert control.after_step(1) is StopReason.SAVE
    control.restart_save_timer()
    now += 59
    assert control.after_step(2) is StopReason.NONE


@pytest.mark.parametrize(
    ("limits", "last_step", "decision", "reason"),
    [
        ({"max_steps": 4}, 4, StopReason.SAVE, "max_steps 4"),
        ({"budget_seconds": 1e-6}, 1, StopReason.BUDGET, "budget_hours"),
        ({"budget_seconds": 3600.0}, 0, StopReason.NONE, ""),
    ],
    ids=str,
)
def test_limit_ends_the_run_with_a_checkpoint(
    limits: dict[str, Any], last_step: int, decision: StopReason, reason: str, world: World
) -> None:
    control, _ = start(world)
    control.set_limits(step=0, **limits)
    decisions = []
    while not control.is_over and len(decisions) < 9:
        decisions.append(control.after_step(len(decisions) + 1))
    assert decisions[-1] is decision
    assert len(decisions) == (last_step or 9)
    assert reason in control.limit
    assert control.is_over == bool(last_step)


@pytest.mark.parametrize(("step", "limits"), [(5, {"max_steps": 5}), (5, {"budget_seconds": 9.0})])
def test_set_limits_counts_earlier_attempts(step: int, limits: dict[str, Any], world: World) -> None:
    control, _ = start(world, used_seconds=10.0)
    control.set_limits(step=step, **limits)
    assert control.is_over


def test_run_seconds_include_earlier_attempts(world: World) -> None:
    control, _ = start(world, used_seconds=100.0)
    assert control.run_seconds >= 100


@pytest.mark.parametrize("decide", [lambda control: control.after_step(1), RunControl.during_evaluation])
def test_first_stop_request_decides(decide: Callable[[RunControl], StopReason], world: World) -> None:
    control, request = start(world)
    assert decide(control) is StopReason.NONE
    request.set(StopReason.SPOT_NOTICE)
    request.set(StopReason.SIGTERM)
    assert decide(control) is StopReason.SPOT_NOTICE


def test_during_evaluation_ignores_periodic_saves(world: World) -> None:
    control, _ = start(world, every_minutes=1e-9)
    assert control.during_evaluation() is StopReason.NONE


def test_after_step_before_start_requests_nothing(world: World) -> None:
    control = RunControl(world, every_minutes=1e-9)
    assert control.after_step(1) is control.during_evaluation() is StopReason.NONE
    control.close()


@pytest.mark.parametrize(
    ("target", "metrics", "reached"),
    [
        (0.759, {"val/top1": 0.759}, True),
        (75.9, {"val/top1": 0.75, "val/top1_tta": 0.76}, True),
        (75.9, {"val/top1": 0.75}, False),
        (0.0, {"val/top1": 0.75}, False),
        (0.5, {}, False),
    ],
)
def test_check_target(target: float, metrics: dict[str, float], reached: bool, world: World) -> None:
    control = RunControl(world)
    control.check_target(metrics, target_top1=target)
    assert control.is_over == reached
