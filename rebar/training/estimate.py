"""How long a run will take, told once, as soon as its speed has been seen."""

import math
import time
from collections.abc import Callable, Sequence

from rebar.reporting.console import in_words, print_beside_bar

FEWEST_STEPS = 10


def seconds_left(
    steps: int,
    seconds_per_step: float,
    *,
    at: int,
    resolutions: Sequence[int],
    steps_per_epoch: int,
    max_steps: int = 0,
) -> float:
    """Of a run that has done ``steps``, by the time of a step at ``at`` pixels; it goes as the number of pixels.

    ``resolutions`` in pixels, of each epoch; ``max_steps`` as in the configuration.
    """
    all_steps = steps_per_epoch * len(resolutions)
    all_steps = min(max_steps, all_steps) if max_steps else all_steps
    weighted = 0.0
    for epoch, resolution in enumerate(resolutions):
        first, last = max(epoch * steps_per_epoch, steps), min((epoch + 1) * steps_per_epoch, all_steps)
        weighted += max(last - first, 0) * (resolution / at) ** 2
    return weighted * seconds_per_step


def first_told(steps_per_epoch: int, *, log_every: int) -> int:
    """After how many steps of its first epoch a new run tells its time; 0: not within that epoch."""
    step = log_every * math.ceil(FEWEST_STEPS / log_every)
    return step + 1 if step < steps_per_epoch else 0


class TimeEstimate:
    """Measures between two moments at which the loop waited for the device; time goes as the number of pixels."""

    def __init__(
        self,
        resolutions: Sequence[int],
        *,
        steps_per_epoch: int,
        global_batch: int,
        max_steps: int = 0,
        say: Callable[[str], None] = print_beside_bar,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``resolutions`` in pixels, of each epoch; ``max_steps`` as in the configuration."""
        self._resolutions, self._steps_per_epoch, self._global_batch = resolutions, steps_per_epoch, global_batch
        self._max_steps = max_steps
        self._say, self._clock = say, clock
        self._since: tuple[int, float] | None = None
        self._told = False

    def at_log_point(self, step: int) -> None:
        """The device has done this step (of the whole run, from 0) and the loop goes on at once."""
        if self._told:
            return
        now, epoch = self._clock(), step // self._steps_per_epoch
        if self._since is None or self._since[0] // self._steps_per_epoch != epoch:
            self._since = (step, now)  # the first step is not counted: it compiles, allocates and waits for the loader
            return
        steps = step - self._since[0]
        if steps < FEWEST_STEPS:
            return
        self._told = True
        seconds_per_step = (now - self._since[1]) / steps
        epochs = len(self._resolutions) - epoch
        left = seconds_left(
            step + 1,
            seconds_per_step,
            at=self._resolutions[epoch],
            resolutions=self._resolutions,
            steps_per_epoch=self._steps_per_epoch,
            max_steps=self._max_steps,
        )
        self._say(
            f"time left: about {in_words(left)} for {epochs} epoch{'s' if epochs > 1 else ''}, without evaluation; by "
            f"{self._global_batch / seconds_per_step:,.0f} images/s at {self._resolutions[epoch]} px in the last "
            f"{steps} steps"
        )
