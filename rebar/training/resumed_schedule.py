"""Bending the learning rate of a run that goes on: a schedule that starts anew, a rate that is held.

A schedule is a function of the step. Where a run is extended, the function would jump, since its end has
moved. A span says from which epoch on the schedule counts instead, and from which rate it sets out.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from rebar.cli import warn
from rebar.optim.schedules import lr_at
from rebar.training.config import TrainConfig

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


def learning_rate(
    config: TrainConfig, span: ScheduleSpan, step: int, steps_per_epoch: int, *, peak: float, last: float = 0.0
) -> float:
    """The scheduled rate of a step of the run, or the one that --freeze-lr holds: its value, or the ``last`` one.

    ``peak`` is the schedule's highest rate.
    """
    held = config.checkpoint.freeze_lr
    if held is not None:
        return held or last or peak

    def schedule(step: int, epochs: int) -> float:
        return lr_at(step, config.lr, epochs=epochs, steps_per_epoch=steps_per_epoch, peak=peak)

    blend_epochs = max(config.lr.lr_peak_epoch, 1)
    return lr_in_span(step, span, schedule, steps_per_epoch=steps_per_epoch, blend_epochs=blend_epochs)


def resumed_schedule(
    config: TrainConfig, before: ScheduleSpan, *, lr: float, peak: float, epoch: int, step: int, steps_per_epoch: int
) -> ScheduleSpan:
    """The schedule of a run that goes on: as it was, stretched to other epochs, or started anew.

    ``lr`` is the last rate, ``epoch`` and ``step`` are where the run stands. Warns where the rate will jump.
    """
    epochs = config.training.epochs
    if config.checkpoint.reset_schedule and (epochs != before.epochs or not before.reset):
        return ScheduleSpan(epochs, reset=True, first_epoch=epoch, from_step=step, from_lr=lr)
    stretched = replace(before, epochs=epochs)
    if epochs > max(epoch, before.epochs) and config.checkpoint.freeze_lr is None:
        coming = learning_rate(config, stretched, step, steps_per_epoch, peak=peak)
        if coming > 1.5 * lr:
            warn(
                f"with {epochs} epochs instead of {before.epochs} the learning rate jumps from {lr:.4g} to "
                f"{coming:.4g}: --reset-schedule rises to it gently, --freeze-lr VALUE holds one"
            )
    return stretched
