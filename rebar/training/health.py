"""Signs that a run goes wrong without failing: told once each, with what to do."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from rebar.errors import RebarError
from rebar.reporting.console import warn_beside_bar

_DIVERGED = 2.0  # times the first loss
_WAITING = 0.2  # share of the time


@dataclass
class HealthWatch:
    """Looks at what is logged anyway. ``say`` is called once for each kind of trouble."""

    say: Callable[[str], None] = warn_beside_bar
    _first_loss: float | None = None
    _said: set[str] = field(default_factory=set)

    def on_loss(self, loss: float, step: int, lr: float) -> None:
        """A loss of one batch, at the steps that are logged."""
        if self._first_loss is None:
            self._first_loss = loss
        if loss > _DIVERGED * self._first_loss:
            self._once(
                "divergence",
                f"the training loss has risen from {self._first_loss:.3g} to {loss:.3g} at step {step}: training may "
                f"be diverging. Lower the learning rate (now {lr:.3g}), or warm up longer",
            )

    def on_validation(self, loss: float, epoch: int) -> None:
        """The validation's mean loss in an epoch, counted from 1. Weights that are lost end the run when it saves."""
        if not math.isfinite(loss):
            self._once(
                "validation",
                f"the validation loss of epoch {epoch} is {loss}: in fp16 the network's outputs may have overflowed. "
                "Where it stays so, try --training.precision bf16 or 32",
            )

    def on_epoch(self, epoch: int, wait_fraction: float, num_workers: int, cores: int) -> None:
        """An epoch (counted from 1) is over. The first is not judged: kernels and page cache are cold."""
        if epoch > 1 and wait_fraction > _WAITING:
            more = (
                f"give more threads (--num-workers, now {num_workers})"
                if num_workers < cores
                else "all cores decode already: write the data smaller (write_dataset.py --max-resolution), train at a "
                "lower resolution, or take a machine with more cores a GPU"
            )
            self._once(
                "starving",
                f"training waited for data {wait_fraction:.0%} of epoch {epoch}: {more}. python -m rebar.doctor shows "
                "what the machine has",
            )

    def _once(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self.say(message)


ADVICE = "Lower --lr, or try --training.precision bf16 or 32"
"""Against a loss or weights that are no numbers any more."""


def check_finite(loss: float, step: int) -> float:
    """The loss, unless it is NaN or infinite: then training is over, and the last checkpoint is good."""
    if not math.isfinite(loss):
        raise RebarError(
            f"the training loss became {loss} at or before step {step}: the last checkpoint is from before. {ADVICE}"
        )
    return loss


def overflowed(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Whether a floating tensor holds NaN or infinity, or values whose squares do (beyond 1e19 in float32), as bool [].

    One reduction on their device, which is not waited for.
    """
    floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel() > 0]
    return ~torch.nn.utils.get_total_norm(floating).isfinite()
