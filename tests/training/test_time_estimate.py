"""Tests of rebar.training.time_estimate, with a fake clock."""

import pytest

from rebar.training.time_estimate import MIN_STEPS, TimeEstimate


def shown(resolutions: list[int], steps: list[tuple[int, float]], **options: int) -> list[str]:
    """Return the lines printed when steps are logged at the given seconds; an epoch has 100 steps of 64 images."""
    lines: list[str] = []
    now = 0.0
    estimate = TimeEstimate(
        resolutions, steps_per_epoch=100, global_batch=64, show=lines.append, clock=lambda: now, **options
    )
    for step, now in steps:  # noqa: B007
        estimate.on_logged_step(step)
    return lines


def test_estimate_skips_the_first_step_and_is_shown_once() -> None:
    steps = [(0, 30.0), (MIN_STEPS - 1, 48.0), (50, 80.0), (99, 129.0)]  # 1 s per step after a slow start
    (line,) = shown([32, 32, 32], steps)
    assert line.startswith("time left: about 4 min for 3 epochs")  # 249 seconds
    assert "64 images/s and 32 px (measured over 50 steps)" in line


def test_estimate_scales_with_the_number_of_pixels() -> None:
    (line,) = shown([32, 64], [(0, 0.0), (59, 59.0)])
    assert "about 7 min" in line  # 40 seconds of this epoch, 400 of the next


def test_estimate_of_a_resumed_run_counts_the_steps_left() -> None:
    (line,) = shown([32, 32, 32], [(210, 0.0), (249, 39.0)])
    assert "about 50 s for 1 epoch, " in line


def test_estimate_respects_max_steps() -> None:
    (line,) = shown([32, 32, 32], [(0, 0.0), (29, 29.0)], max_steps=40)
    assert "about 10 s" in line


@pytest.mark.parametrize("steps", [[(0, 0.0), (MIN_STEPS - 1, 5.0)], [(90, 0.0), (111, 10.0)]])
def test_estimate_needs_enough_steps_of_one_epoch(steps: list[tuple[int, float]]) -> None:
    assert shown([32, 32], steps) == []
