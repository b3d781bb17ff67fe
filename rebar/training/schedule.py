"""The learning rate at any step.

As in ffcv-imagenet: a curve over epochs, joined by straight lines between whole epochs. Epochs are
counted from 0; the value is not scaled by the number of processes.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rebar.config import knob


@dataclass(frozen=True)
class LearningRateConfig:
    """Learning rate schedule."""

    lr: float = knob(0.5, help="peak learning rate, for the whole global batch", minimum=0)
    lr_schedule_type: Literal["cyclic", "step"] = knob("cyclic", help="linear up and down, or a staircase")
    lr_peak_epoch: int = knob(2, help="cyclic: epoch of the peak", minimum=0)
    step_ratio: float = knob(0.1, help="step: factor at each step", minimum=0)
    step_length: int = knob(30, help="step: epochs between steps", minimum=1)


def cyclic_lr(epoch: float, *, peak: float, peak_epoch: float, epochs: float) -> float:
    """From 1e-4 of the peak, linearly up to it at ``peak_epoch``, linearly down to 0 at ``epochs``."""
    return float(np.interp(epoch, [0, peak_epoch, epochs], [1e-4 * peak, peak, 0]))


def step_lr(epoch: float, *, peak: float, ratio: float, length: int, epochs: int) -> float:
    """Times ``ratio`` every ``length`` epochs; 0 from ``epochs`` on."""
    return 0.0 if epoch >= epochs else peak * ratio ** (epoch // length)


def lr_at_epoch(epoch: int, config: LearningRateConfig, *, epochs: int) -> float:
    """The learning rate at the start of a whole epoch."""
    if config.lr_schedule_type == "step":
        return step_lr(epoch, peak=config.lr, ratio=config.step_ratio, length=config.step_length, epochs=epochs)
    return cyclic_lr(epoch, peak=config.lr, peak_epoch=config.lr_peak_epoch, epochs=epochs)


def lr_at(step: int, config: LearningRateConfig, *, epochs: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from the start of training."""
    epoch, step_of_epoch = divmod(step, steps_per_epoch)
    start, end = (lr_at_epoch(e, config, epochs=epochs) for e in (epoch, epoch + 1))
    return start + (end - start) * step_of_epoch / steps_per_epoch
