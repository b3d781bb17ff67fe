"""How long the run will take, as soon as there is something to judge by."""

import time
from collections.abc import Sequence

from rebar.reporting import console
from rebar.reporting.durations import in_words

_STEPS = 10
"""Steps that the judgement rests on, at least."""
_WORTH_TELLING = 60.0  # seconds


class Pace:
    """Tells once how long the steps take that are left, by the first ones of this attempt and the epochs' pixels."""

    def __init__(self, resolutions: Sequence[int], steps_per_epoch: int, *, is_shown: bool) -> None:
        """``resolutions`` are those of all epochs, in pixels."""
        self._resolutions, self._steps_per_epoch = resolutions, steps_per_epoch
        self._is_shown = is_shown
        self._began: tuple[int, float] | None = None

    def at(self, step: int) -> None:
        """After a step of the run, the device having done it. The first call, the start behind it, begins the clock."""
        if not self._is_shown:
            return
        now = time.perf_counter()
        if self._began is None or step // self._steps_per_epoch != self._began[0] // self._steps_per_epoch:
            self._began = (step, now)  # in another epoch, validation and another resolution lie between
            return
        first, then = self._began
        if step - first < _STEPS:
            return
        self._is_shown = False
        left = self.seconds_left(step, (now - then) / (step - first))
        if left >= _WORTH_TELLING:
            console.tell_beside_bar(f"    time: about {in_words(left)} to go, without validation")

    def seconds_left(self, step: int, seconds_per_step: float) -> float:
        """Of the steps after ``step``, where those of its epoch take so long; time goes by the number of pixels."""
        epoch, done = divmod(step + 1, self._steps_per_epoch)
        now = self._resolutions[step // self._steps_per_epoch] ** 2
        pixels = [self._steps_per_epoch * resolution**2 for resolution in self._resolutions[epoch:]]
        if done:
            pixels[0] -= done * self._resolutions[epoch] ** 2
        return seconds_per_step * sum(pixels) / now
