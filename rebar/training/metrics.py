"""Metrics of an epoch and of the process, and warnings about those that show a problem."""

import contextlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from rebar.cli import count
from rebar.errors import RebarError
from rebar.reporting.console import format_duration, images_per_second, print_above_bar, warn_above_bar
from rebar.training.distributed import World, sum_over_world

Batch = TypeVar("Batch")


def peak_host_gb() -> float:
    """Return the peak resident memory of this process in GB (10^9 bytes), including pages of mapped files."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def memory_metrics(world: World) -> dict[str, float]:
    """Return this rank's peak memory in GB and, if NVML reports it, the GPU utilization of the last second."""
    metrics = {"memory/host_peak_gb": round(peak_host_gb(), 3)}
    if world.device.type == "cuda":
        metrics["memory/gpu_peak_gb"] = round(torch.cuda.max_memory_allocated(world.device) / 1e9, 3)
        with contextlib.suppress(Exception):  # NVML fails under MIG, without permission, or without its package
            metrics["gpu/utilization"] = torch.cuda.utilization(world.device) / 100
    return metrics


class TrainMeter:
    """Accumulates the steps, time, samples, loss and correct predictions of one epoch.

    The sums are float64 tensors on the device, so updates need no CPU-GPU sync. Checkpoints contain the meter, so the
    metrics of a resumed epoch cover all attempts.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps = 0
        """Steps of this epoch, including earlier attempts."""
        self.wait_seconds = 0.0
        """Seconds spent waiting for batches."""
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._first_step = 0
        self._seconds = 0.0
        self._running_since: float | None = None

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Start the clock and yield the batches. Measures the time spent waiting for them."""
        self._running_since = time.perf_counter()
        self._first_step = self.steps
        remaining = iter(batches)
        while True:
            requested = time.perf_counter()
            try:
                batch = next(remaining)
            except StopIteration:
                return
            finally:
                self.wait_seconds += time.perf_counter() - requested
            yield batch

    def stop_clock(self) -> None:
        """Stop the clock."""
        self._seconds, self._running_since = self.seconds, None

    @property
    def steps_of_attempt(self) -> int:
        """Steps since :meth:`timed`, without earlier attempts."""
        return self.steps - self._first_step

    @property
    def seconds(self) -> float:
        """Seconds spent on the steps of this epoch, including earlier attempts."""
        return self._seconds + (time.perf_counter() - self._running_since if self._running_since is not None else 0)

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch or micro-batch with mean loss ``loss``. Does not synchronize with the device."""
        correct = (logits.detach().argmax(dim=1) == labels).sum()
        size = len(labels)
        self._sums += torch.stack([torch.full_like(loss, size), loss.detach() * size, correct]).double()

    def end_step(self) -> None:
        """Count a step."""
        self.steps += 1

    def averages(self, world: World) -> tuple[float, float]:
        """Return the mean loss and top-1 accuracy (a fraction) over all ranks. Synchronizes with the device."""
        samples, loss, correct = self._totals(world).tolist()
        return loss / max(samples, 1), correct / max(samples, 1)

    def _totals(self, world: World) -> torch.Tensor:
        return sum_over_world(self._sums.clone(), world)

    def state_dict(self, world: World) -> dict[str, Any]:
        """Return the state for a checkpoint, over all ranks. Every rank must call it. Synchronizes with the device."""
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "wait_seconds": self.wait_seconds,
            "sums": self._totals(world).cpu(),
        }

    def load_state_dict(self, state: dict[str, Any], world: World) -> None:
        """Restore the state from a checkpoint. Rank 0 gets the sums over all ranks."""
        self.steps, self._seconds = state["steps"], state["seconds"]
        self.wait_seconds = state["wait_seconds"]
        self._sums.copy_(state["sums"] if world.is_main else torch.zeros(3))


_DIVERGENCE_RATIO = 2.0  # loss, relative to the first one
_WAIT_FRACTION = 0.2


@dataclass
class HealthMonitor:
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
                f"diverging. Lower the learning rate (now {lr:.3g}), or use a longer warmup",
            )

    def on_validation(self, loss: float, epoch: int) -> None:
        """Check the validation loss of an epoch, counted from 1."""
        if not math.isfinite(loss):
            self._warn_once(
                "validation",
                f"the validation loss of epoch {epoch} is {loss}: the network's outputs overflowed. If this "
                "persists, lower --lr, or with fp16 try --training.precision bf16",
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


ADVICE = "Lower --lr, or with fp16 try --training.precision bf16."
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
            f"{self._resolutions[epoch]} px (measured over {count(steps, 'step')})"
        )
