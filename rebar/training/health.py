"""Detect divergence, NaN losses and data loading bottlenecks."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from rebar.errors import RebarError
from rebar.reporting.console import warn_above_bar

_DIVERGENCE_RATIO = 2.0  # loss, relative to the first one
_WAIT_FRACTION = 0.2


@dataclass
class HealthWatch:
    """Warns about problems that show in the logged metrics, once per kind of problem."""

    warn: Callable[[str], None] = warn_above_bar
    _first_loss: float | None = None
    _warned: set[str] = field(default_factory=set)

    def on_loss(self, loss: float, step: int, lr: float) -> None:
        """Check the loss of a logged step for divergence."""
        if self._first_loss is None:
            self._first_loss = loss
        if loss > _DIVERGENCE_RATIO * self._first_loss:
            self._warn_once(
                "divergence",
                f"the training loss rose from {self._first_loss:.3g} to {loss:.3g} at step {step}: training may be "
                f"diverging. Lower the learning rate (now {lr:.3g}), or use a longer warm-up",
            )

    def on_validation(self, loss: float, epoch: int) -> None:
        """Check the validation loss of an epoch, counted from 1."""
        if not math.isfinite(loss):
            self._warn_once(
                "validation",
                f"the validation loss of epoch {epoch} is {loss}: in fp16 the network's outputs may have overflowed. "
                "If this persists, try --training.precision bf16 or 32",
            )

    def on_epoch(self, epoch: int, wait_fraction: float, num_workers: int, cores: int) -> None:
        """Check how long an epoch, counted from 1, waited for data. Skips the first, whose caches are cold."""
        if epoch > 1 and wait_fraction > _WAIT_FRACTION:
            advice = (
                f"use more decoding threads (--num-workers, now {num_workers})"
                if num_workers < cores
                else "all cores are decoding: write smaller images (write_dataset.py --max-resolution), train at a "
                "lower resolution, or use a machine with more cores per GPU"
            )
            self._warn_once(
                "data",
                f"training waited for data {wait_fraction:.0%} of epoch {epoch}: {advice}. python -m rebar.doctor "
                "shows the machine's cores",
            )

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self.warn(message)


ADVICE = "Lower --lr, or try --training.precision bf16 or 32."
"""Advice for a NaN or infinite loss."""


def check_finite(loss: float, step: int) -> float:
    """Return the loss. Raises RebarError if it is NaN or infinite."""
    if not math.isfinite(loss):
        raise RebarError(
            f"training diverged: the training loss became {loss} at or before step {step}. The last checkpoint is from "
            f"before. {ADVICE}",
            code="training-diverged",
        )
    return loss


def has_overflowed(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return whether the total norm of the floating-point tensors is NaN or infinite, as a bool tensor ``[]``.

    Values whose squares overflow (above 1e19 in float32) also count. Does not synchronize with the device.
    """
    floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel() > 0]
    return ~torch.nn.utils.get_total_norm(floating).isfinite()
