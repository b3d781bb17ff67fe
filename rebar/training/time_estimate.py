"""Estimate the remaining time of a run from the speed of its first steps, scaled by the number of pixels."""

import math
import time
from collections.abc import Callable, Sequence

from rebar.cli import count
from rebar.reporting.console import format_duration, images_per_second, print_above_bar

MIN_STEPS = 10
"""Minimum number of steps to base an estimate on."""


def seconds_left(
    step: int,
    seconds_per_step: float,
    *,
    measured_at: int,
    resolutions: Sequence[int],
    steps_per_epoch: int,
    max_steps: int = 0,
) -> float:
    """Estimate the seconds that remain after ``step`` steps, from the step time measured at ``measured_at`` pixels.

    ``resolutions`` are in pixels, one per epoch. ``max_steps`` limits the steps of the run; 0: no limit.
    """
    all_steps = steps_per_epoch * len(resolutions)
    all_steps = min(max_steps, all_steps) if max_steps else all_steps
    weighted = 0.0
    for epoch, resolution in enumerate(resolutions):
        first, last = max(epoch * steps_per_epoch, step), min((epoch + 1) * steps_per_epoch, all_steps)
        weighted += max(last - first, 0) * (resolution / measured_at) ** 2
    return weighted * seconds_per_step


def first_estimate_step(steps_per_epoch: int, *, log_every: int) -> int:
    """Return the step after which a new run prints its estimate; 0 if that is not within the first epoch."""
    step = log_every * math.ceil(MIN_STEPS / log_every)
    return step + 1 if step < steps_per_epoch else 0


class TimeEstimate:
    """Prints the estimate once. It measures between two logged steps, where the loop synchronizes with the device."""

    def __init__(
        self,
        resolutions: Sequence[int],
        *,
        steps_per_epoch: int,
        global_batch: int,
        max_steps: int = 0,
        show: Callable[[str], None] = print_above_bar,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``resolutions`` are in pixels, one per epoch. ``max_steps`` limits the steps of the run; 0: no limit."""
        self._resolutions, self._steps_per_epoch, self._global_batch = resolutions, steps_per_epoch, global_batch
        self._max_steps = max_steps
        self._show, self._clock = show, clock
        self._since: tuple[int, float] | None = None
        self._shown = False

    def on_logged_step(self, step: int) -> None:
        """Measure the time. Call it at each logged step, counted from 0, right after the CPU-GPU sync."""
        if self._shown:
            return
        now, epoch = self._clock(), step // self._steps_per_epoch
        if self._since is None or self._since[0] // self._steps_per_epoch != epoch:
            # Measure from here: the first step of an epoch compiles, allocates and waits for data.
            self._since = step, now
            return
        steps = step - self._since[0]
        if steps < MIN_STEPS:
            return
        self._shown = True
        seconds_per_step = (now - self._since[1]) / steps
        epochs = len(self._resolutions) - epoch
        left = seconds_left(
            step + 1,
            seconds_per_step,
            measured_at=self._resolutions[epoch],
            resolutions=self._resolutions,
            steps_per_epoch=self._steps_per_epoch,
            max_steps=self._max_steps,
        )
        self._show(
            f"time left: about {format_duration(left)} for {count(epochs, 'epoch')}, "
            f"without evaluation, at {images_per_second(self._global_batch / seconds_per_step)} and "
            f"{self._resolutions[epoch]} px (measured over {steps} steps)"
        )
