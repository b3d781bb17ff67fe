"""Learning rate schedules.

The cyclic and step schedules are ffcv-imagenet's: defined at the start of each epoch, and interpolated linearly in
between. The others are functions of the step. Epochs and steps are counted from 0.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from rebar.config import option

LrScaling = Literal["none", "linear", "sqrt"]


# ------------------------------------------------------------------ functions of the epoch


def cyclic_lr(epoch: float, *, peak: float, peak_epoch: float, epochs: float) -> float:
    """Rise linearly from 1e-4 of the peak to the peak at ``peak_epoch``, then decay linearly to 0 at ``epochs``.

    If ``peak_epoch`` is not before ``epochs``, the learning rate only rises.
    """
    if peak_epoch >= epochs:
        return float(np.interp(epoch, [0, peak_epoch], [1e-4 * peak, peak]))
    return float(np.interp(epoch, [0, peak_epoch, epochs], [1e-4 * peak, peak, 0]))


def step_lr(epoch: float, *, peak: float, ratio: float, length: int, epochs: int) -> float:
    """Multiply by ``ratio`` every ``length`` epochs; 0 from ``epochs`` on."""
    return 0.0 if epoch >= epochs else peak * ratio ** (epoch // length)


# ------------------------------------------------------------------ functions of the step


def cosine_lr(progress: float, *, start: float, end: float) -> float:
    """Follow half a cosine from ``start`` at progress 0 to ``end`` at 1 (Loshchilov and Hutter, "SGDR", ICLR 2017)."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def linear_lr(progress: float, *, start: float, end: float) -> float:
    """Interpolate linearly from ``start`` at progress 0 to ``end`` at 1."""
    return start + (end - start) * progress


def polynomial_lr(progress: float, *, start: float, end: float, power: float) -> float:
    """Decay from ``start`` to ``end`` with a power of the remaining progress, as MLPerf does for LARS."""
    return end + (start - end) * (1 - progress) ** power


def onecycle_lr(
    step: int, *, steps: int, peak: float, rise: float = 0.3, start_divisor: float = 25.0, end_divisor: float = 1e4
) -> float:
    """Rise to the peak over a fraction ``rise`` of the steps, then decay (Smith and Topin, "Super-convergence", 2017).

    Equal to torch's OneCycleLR: the last of ``steps`` has the lowest learning rate.
    """
    first = peak / start_divisor
    peak_step, last_step = rise * steps - 1, steps - 1
    if step < peak_step:
        return cosine_lr(step / peak_step, start=first, end=peak)
    progress = min((step - peak_step) / (last_step - peak_step), 1.0)
    return cosine_lr(progress, start=peak, end=first / end_divisor)


# ------------------------------------------------------------------ all schedules


@dataclass(frozen=True)
class ScheduleStep:
    """The position of a step in a run, from which a schedule computes the learning rate."""

    step: int
    epochs: int
    steps_per_epoch: int
    peak: float
    warmup_steps: float

    @property
    def steps(self) -> int:
        """The steps of the run."""
        return self.epochs * self.steps_per_epoch

    @property
    def progress(self) -> float:
        """The fraction of the steps after the warmup that are complete, at most 1."""
        return min((self.step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1), 1.0)

    def interpolate(self, at_epoch: Callable[[int], float]) -> float:
        """Interpolate linearly between the learning rates at the starts of epochs."""
        epoch, step_of_epoch = divmod(self.step, self.steps_per_epoch)
        start, end = at_epoch(epoch), at_epoch(epoch + 1)
        return start + (end - start) * step_of_epoch / self.steps_per_epoch


@dataclass(frozen=True)
class Schedule:
    """A schedule: its function, the options that it reads, and whether a linear warmup comes before it."""

    lr_at: Callable[["LearningRateConfig", ScheduleStep], float]
    options: tuple[str, ...] = ()
    has_warmup: bool = True


def _cyclic(c: "LearningRateConfig", at: ScheduleStep) -> float:
    return at.interpolate(lambda epoch: cyclic_lr(epoch, peak=at.peak, peak_epoch=c.lr_peak_epoch, epochs=at.epochs))


def _step(c: "LearningRateConfig", at: ScheduleStep) -> float:
    ratio, length = c.step_ratio, c.step_length
    return at.interpolate(lambda epoch: step_lr(epoch, peak=at.peak, ratio=ratio, length=length, epochs=at.epochs))


def _onecycle(c: "LearningRateConfig", at: ScheduleStep) -> float:
    rise, start, end = c.onecycle_rise, c.onecycle_start, c.onecycle_end
    return onecycle_lr(at.step, steps=at.steps, peak=at.peak, rise=rise, start_divisor=start, end_divisor=end)


def _polynomial(c: "LearningRateConfig", at: ScheduleStep) -> float:
    return polynomial_lr(at.progress, start=at.peak, end=c.final_lr(at.peak), power=c.decay_power)


SCHEDULES: dict[str, Schedule] = {
    "cyclic": Schedule(_cyclic, ("lr_peak_epoch",), has_warmup=False),
    "step": Schedule(_step, ("step_ratio", "step_length")),
    "cosine": Schedule(lambda c, at: cosine_lr(at.progress, start=at.peak, end=c.final_lr(at.peak)), ("min_lr",)),
    "onecycle": Schedule(_onecycle, ("onecycle_rise", "onecycle_start", "onecycle_end"), has_warmup=False),
    "linear": Schedule(lambda c, at: linear_lr(at.progress, start=at.peak, end=c.final_lr(at.peak)), ("min_lr",)),
    "polynomial": Schedule(_polynomial, ("min_lr", "decay_power")),
    "constant": Schedule(lambda c, at: at.peak),
}
"""The schedules by ``lr_schedule_type``. Register new ones here."""


@dataclass(frozen=True)
class LearningRateConfig:
    """Learning rate schedule."""

    lr: float = option(
        0.5, help="peak learning rate; for the actual global batch unless lr_scaling is given with it", minimum=0
    )
    max_lr: float | None = option(
        None, help="peak learning rate for the actual global batch; overrides lr and lr_scaling", minimum=0
    )
    lr_scaling: LrScaling = option("none", help="scale lr from a global batch of base_batch to the actual one")
    base_batch: int = option(256, help="global batch that lr refers to; implies lr_scaling linear", minimum=1)
    lr_schedule_type: str = option(
        "cyclic",
        help="cyclic: linear rise, then linear decay; step: staircase; onecycle: cosine rise, then cosine decay",
        choices=SCHEDULES,
        synonyms={"cosineannealinglr": "cosine", "steplr": "step", "onecyclelr": "onecycle"},
    )
    lr_peak_epoch: int = option(2, help="cyclic: epoch of the peak", minimum=0)
    step_ratio: float = option(0.1, help="step: decay factor", minimum=0)
    step_length: int = option(30, help="step: epochs between decays", minimum=1)
    warmup_epochs: float = option(
        0.0, help="epochs of linear warmup; not with cyclic and onecycle", minimum=0, unit="ep"
    )
    warmup_factor: float = option(0.0, help="warmup: initial fraction of the peak", minimum=0, maximum=1)
    min_lr: float = option(0.0, help="cosine, linear, polynomial: final learning rate", minimum=0)
    decay_power: float = option(2.0, help="polynomial: power of the remaining progress", minimum=0)
    onecycle_rise: float = option(
        0.3, help="onecycle: fraction of the steps before the peak", minimum=0.001, maximum=0.999
    )
    onecycle_start: float = option(25.0, help="onecycle: peak learning rate divided by the initial one", minimum=1)
    onecycle_end: float = option(1e4, help="onecycle: initial learning rate divided by the final one", minimum=1)

    def final_lr(self, peak: float) -> float:
        """Return the learning rate at the end of a decay."""
        return min(self.min_lr, peak)

    def conditions(self) -> Mapping[str, tuple[str, bool]]:
        """Return, by option, the condition under which it has an effect, and whether that condition is met."""
        kind, with_warmup = self.lr_schedule_type, [name for name, each in SCHEDULES.items() if each.has_warmup]
        readers: dict[str, list[str]] = {"warmup_epochs": with_warmup}
        for name, schedule in SCHEDULES.items():
            for read in schedule.options:
                readers.setdefault(read, []).append(name)
        return {
            **{name: (f"lr_schedule_type {' or '.join(kinds)}", kind in kinds) for name, kinds in readers.items()},
            "warmup_factor": ("warmup_epochs", kind in with_warmup and self.warmup_epochs > 0),
        }


def scale_lr(lr: float, *, scaling: LrScaling, global_batch: int, base_batch: int) -> float:
    """Scale a learning rate from a global batch of ``base_batch`` images to one of ``global_batch``.

    Linear: Goyal et al., "Accurate, large minibatch SGD", 2017. Square root: Krizhevsky, "One weird trick for
    parallelizing convolutional neural networks", 2014; used with LAMB (You et al., 2020).
    """
    ratio = global_batch / base_batch
    return lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[scaling]


def peak_lr(config: LearningRateConfig, *, global_batch: int) -> float:
    """Return the peak learning rate for ``global_batch`` images per step."""
    if config.max_lr is not None:
        return config.max_lr
    return scale_lr(config.lr, scaling=config.lr_scaling, global_batch=global_batch, base_batch=config.base_batch)


def build_base_schedule(
    config: LearningRateConfig, *, epochs: int, steps_per_epoch: int, peak: float
) -> Callable[[int], float]:
    """Return the function that maps a step of a run, counted from 0, to its learning rate.

    ``peak`` is that of :func:`peak_lr`.
    """
    schedule = SCHEDULES[config.lr_schedule_type]
    warmup_steps = config.warmup_epochs * steps_per_epoch if schedule.has_warmup else 0.0

    def at_step(step: int) -> float:
        if step < warmup_steps:
            return linear_lr(step / warmup_steps, start=config.warmup_factor * peak, end=peak)
        return schedule.lr_at(config, ScheduleStep(step, epochs, steps_per_epoch, peak, warmup_steps))

    return at_step


# ------------------------------------------------------------------ resumed runs


@dataclass(frozen=True)
class ScheduleSpan:
    """The total epochs of a run's schedule, and how a resumed run joins it.

    Extending a run stretches its schedule, so the learning rate jumps. With --reset-schedule, it moves from the last
    learning rate to the stretched schedule without a jump.
    """

    epochs: int
    """Total epochs of the run."""
    reset: bool = False
    """Whether --reset-schedule created the span. Prevents the same command from creating another one."""
    from_step: int = 0
    """Step of the run at which the span was created."""
    from_lr: float | None = None
    """Learning rate to blend from; None disables blending."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "ScheduleSpan":
        """Restore a span from :meth:`state_dict`."""
        return cls(**state)

    def resumed(self, epochs: int, *, reset: bool, step: int, lr: float) -> "ScheduleSpan":
        """Return the span of a run resumed with ``epochs`` epochs: the same one, or with ``reset`` a new one.

        ``step`` and ``lr`` are the run's number of complete steps and its last learning rate.
        """
        if reset and (epochs != self.epochs or not self.reset):
            return ScheduleSpan(epochs, reset=True, from_step=step, from_lr=lr)
        return replace(self, epochs=epochs)


def lr_in_span(step: int, span: ScheduleSpan, schedule: Callable[[int], float], *, steps_per_epoch: int) -> float:
    """Return the learning rate at a step of the run.

    ``schedule`` is that of a run of ``span.epochs`` epochs. The weight of ``span.from_lr`` decreases linearly from 1 to
    0 over one epoch, or over half of the remaining steps if that is shorter. Thus the result never exceeds both of them
    and ends with the schedule.
    """
    scheduled = schedule(step)
    if span.from_lr is None:
        return scheduled
    blend_steps = max(1.0, min(steps_per_epoch, (span.epochs * steps_per_epoch - span.from_step) / 2))
    weight = max(0.0, 1 - (step - span.from_step) / blend_steps)
    return scheduled + weight * (span.from_lr - scheduled)


def build_schedule(
    config: LearningRateConfig,
    span: ScheduleSpan,
    *,
    steps_per_epoch: int,
    global_batch: int,
    frozen_lr: float | None = None,
    last_lr: float = 0.0,
) -> Callable[[int], float]:
    """Return the function that maps a step of the run to its learning rate.

    ``frozen_lr`` replaces the schedule with a constant; 0 means ``last_lr``, or the peak if that is also 0.
    """
    peak = peak_lr(config, global_batch=global_batch)
    if frozen_lr is not None:
        constant = frozen_lr or last_lr or peak
        return lambda step: constant
    schedule = build_base_schedule(config, epochs=span.epochs, steps_per_epoch=steps_per_epoch, peak=peak)
    return lambda step: lr_in_span(step, span, schedule, steps_per_epoch=steps_per_epoch)
