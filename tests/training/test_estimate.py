"""The time a run will take, by a clock that the test sets."""

import pytest

from rebar.training.estimate import FEWEST_STEPS, TimeEstimate


def told(resolutions: list[int], steps: list[tuple[int, float]], **options: int) -> list[str]:
    """What is said when the given steps are logged at the given seconds; 100 steps of 64 images an epoch."""
    said: list[str] = []
    now = 0.0
    estimate = TimeEstimate(
        resolutions, steps_per_epoch=100, global_batch=64, say=said.append, clock=lambda: now, **options
    )
    for step, now in steps:  # noqa: B007
        estimate.at_log_point(step)
    return said


def test_the_first_step_is_not_counted_and_it_is_told_once() -> None:
    steps = [(0, 30.0), (FEWEST_STEPS - 1, 48.0), (50, 80.0), (99, 129.0)]  # a second each after a slow start
    (line,) = told([32, 32, 32], steps)
    assert line.startswith("time left: about 4 min for 3 epochs")  # 249 seconds
    assert "by 64 images/s at 32 px in the last 50 steps" in line


def test_larger_images_take_longer() -> None:
    (line,) = told([32, 64], [(0, 0.0), (59, 59.0)])
    assert "about 7 min" in line  # 40 seconds of this epoch, 400 of the next


def test_a_run_that_goes_on_counts_what_is_left() -> None:
    (line,) = told([32, 32, 32], [(210, 0.0), (249, 39.0)])
    assert "about 50 s for 1 epoch, " in line


def test_a_limit_of_steps_counts() -> None:
    (line,) = told([32, 32, 32], [(0, 0.0), (29, 29.0)], max_steps=40)
    assert "about 10 s" in line


@pytest.mark.parametrize("steps", [[(0, 0.0), (FEWEST_STEPS - 1, 5.0)], [(90, 0.0), (111, 10.0)]])
def test_too_few_steps_of_one_epoch_tell_nothing(steps: list[tuple[int, float]]) -> None:
    assert told([32, 32], steps) == []
