"""Training metrics: memory usage, and the loss, accuracy and time of an epoch."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

from rebar.reporting.environment import peak_host_gb
from rebar.training.distributed import World, sum_over_world

Batch = TypeVar("Batch")


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
    def steps_of_pass(self) -> int:
        """Steps since :meth:`timed`, without earlier attempts."""
        return self.steps - self._first_step

    @property
    def seconds(self) -> float:
        """Seconds spent on the steps of this epoch, including earlier attempts."""
        return self._seconds + (time.perf_counter() - self._running_since if self._running_since is not None else 0)

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch or micro-batch with mean loss ``loss``. Does not synchronize with the device."""
        correct = (logits.detach().argmax(dim=1) == labels).sum()
        count = len(labels)
        self._sums += torch.stack([torch.full_like(loss, count), loss.detach() * count, correct]).double()

    def end_step(self) -> None:
        """Count a step."""
        self.steps += 1

    def averages(self, world: World) -> tuple[float, float]:
        """Return the mean loss and top-1 accuracy (a fraction) over all ranks. Synchronizes with the device."""
        count, loss, correct = self._totals(world).tolist()
        return loss / max(count, 1), correct / max(count, 1)

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
        """Restore the state from a checkpoint. Rank 0 takes the sums of all ranks."""
        self.steps, self._seconds = state["steps"], state["seconds"]
        self.wait_seconds = state["wait_seconds"]
        self._sums.copy_(state["sums"] if world.is_main else torch.zeros(3))
