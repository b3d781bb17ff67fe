"""Bending the learning rate of a run that goes on: a schedule that starts anew, a rate that is held.

A schedule is a function of the step. Where a run is extended, the function would jump, since its end has
moved. A span says from which epoch on the schedule counts instead, and from which rate it sets out.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

Schedule = Callable[[int, int], float]
"""The rate of a step counted from the schedule's start, in a schedule of so many epochs."""


@dataclass(frozen=True)
class ScheduleSpan:
    """From ``first_epoch`` on the schedule runs over what is left of ``epochs``."""

    epochs: int
    """Epochs of the whole run this span was made for."""
    reset: bool = False
    """Whether a new start was asked for, so that the same command does not ask again."""
    first_epoch: int = 0
    from_step: int = 0
    """The step of the run at which the span was made."""
    from_lr: float | None = None
    """The rate at that step; None: the schedule's own."""

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "ScheduleSpan":
        """The inverse of :meth:`state_dict`."""
        return cls(**state)


def lr_in_span(
    step: int, span: ScheduleSpan, schedule: Schedule, *, steps_per_epoch: int, blend_epochs: float
) -> float:
    """The learning rate of a step of the run.

    Over ``blend_epochs`` (cut to what is left) the rate moves from ``span.from_lr`` to the schedule's: their
    difference shrinks linearly.
    """
    first_step, epochs = span.first_epoch * steps_per_epoch, span.epochs - span.first_epoch
    scheduled = schedule(step - first_step, epochs)
    if span.from_lr is None:
        return scheduled
    steps_left = span.epochs * steps_per_epoch - span.from_step
    blend_steps = max(1.0, min(blend_epochs * steps_per_epoch, steps_left))
    difference = span.from_lr - schedule(span.from_step - first_step, epochs)
    return max(0.0, scheduled + difference * max(0.0, 1 - (step - span.from_step) / blend_steps))
