"""Estimate a run's remaining time from the speed of its first steps, scaled by the number of pixels."""

import math
import time
from collections.abc import Callable, Sequence

from rebar.reporting.console import format_duration, print_above_bar

MIN_STEPS = 10
"""Steps that an estimate is based on, at least."""


def seconds_left(
    step: int,
    seconds_per_step: float,
    *,
    measured_at: int,
    resolutions: Sequence[int],
    steps_per_epoch: int,
    max_steps: int = 0,
) -> float:
    """Return the duration of the steps left after ``step`` steps, given that of a step at ``measured_at`` pixels.

    ``resolutions`` in pixels, one per epoch; ``max_steps`` 0 for no limit.
    """
    all_steps = steps_per_epoch * len(resolutions)
    all_steps = min(max_steps, all_steps) if max_steps else all_steps
    weighted = 0.0
    for epoch, resolution in enumerate(resolutions):
        first, last = max(epoch * steps_per_epoch, step), min((epoch + 1) * steps_per_epoch, all_steps)
        weighted += max(last - first, 0) * (resolution / measured_at) ** 2
    return weighted * seconds_per_step


def first_estimate_step(steps_per_epoch: int, *, log_every: int) -> int:
    """Return the number of steps after which a new run prints its estimate; 0 if not within the first epoch."""
    step = log_every * math.ceil(MIN_STEPS / log_every)
    return step + 1 if step < steps_per_epoch else 0


class TimeEstimate:
    """Prints the estimate once, measured between two logged steps, at which the loop synchronizes with the device."""

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
        """``resolutions`` in pixels, one per epoch; ``max_steps`` 0 for no limit."""
        self._resolutions, self._steps_per_epoch, self._global_batch = resolutions, steps_per_epoch, global_batch
        self._max_steps = max_steps
        self._show, self._clock = show, clock
        self._since: tuple[int, float] | None = None
        self._shown = False

    def at_log_point(self, step: int) -> None:
        """Measure at a logged step of the run, counted from 0, right after synchronizing with the device."""
        if self._shown:
            return
        now, epoch = self._clock(), step // self._steps_per_epoch
        if self._since is None or self._since[0] // self._steps_per_epoch != epoch:
            self._since = (
                step,
                now,
            )  # an epoch's first step compiles, allocates and waits for data
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
            f"time left: about {format_duration(left)} for {epochs} epoch{'s' if epochs > 1 else ''}, "
            f"without evaluation, at {self._global_batch / seconds_per_step:,.0f} images/s and "
            f"{self._resolutions[epoch]} px (measured over {steps} steps)"
        )
