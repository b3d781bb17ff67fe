"""How long a run will take is told once, from its own steps."""

import time

import pytest

from rebar.training.pace import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def walk(pace: Pace, clock: list[float], steps: range, seconds_per_step: float) -> None:
    for step in steps:
        pace.at(step)
        clock[0] += seconds_per_step * steps.step


def test_time_goes_by_the_pixels() -> None:
    pace = Pace([100, 100, 200], 10, is_shown=True)
    assert pace.seconds_left(9, 1.0) == 10 + 40  # one epoch is over
    assert pace.seconds_left(14, 1.0) == 5 + 40
    assert pace.seconds_left(24, 1.0) == 5  # of its own resolution
    assert pace.seconds_left(29, 1.0) == 0


def test_it_is_told_once_by_steps_after_the_first(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    pace = Pace([32] * 3, 100, is_shown=True)
    clock[0] = 1000.0  # what the start took
    walk(pace, clock, range(0, 300, 5), seconds_per_step=12.0)
    # After steps 0 to 10 there are 289 left.
    assert capsys.readouterr().out == "    time: about 58 min to go, without validation\n"


def test_steps_of_two_epochs_are_not_compared(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    pace = Pace([32] * 4, 8, is_shown=True)
    walk(pace, clock, range(32), seconds_per_step=100.0)
    assert capsys.readouterr().out == ""


def test_short_runs_and_other_processes_are_silent(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    walk(Pace([32], 100, is_shown=True), clock, range(100), seconds_per_step=0.1)
    walk(Pace([32], 100, is_shown=False), clock, range(100), seconds_per_step=100)
    assert capsys.readouterr().out == ""
