"""What a run uses of the machine's memory and GPU, as the log names it.

What an epoch's metrics are made of, kept on the device so that the loop never waits.

A checkpoint within an epoch holds it, so that the epoch's averages and times are those of all attempts.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

from rebar.reporting.console import peak_host_gb
from rebar.training.distributed import World, sum_over_world


def memory_metrics(world: World) -> dict[str, float]:
    """Peak memory of this process, GB; how busy its GPU was in the last second, where NVIDIA's library tells."""
    metrics = {"memory/host_peak_gb": round(peak_host_gb(), 3)}
    if world.device.type == "cuda":
        metrics["memory/gpu_peak_gb"] = round(torch.cuda.max_memory_allocated(world.device) / 1e9, 3)
        with contextlib.suppress(Exception):  # NVML has errors of its own, as under MIG; none is worth a run
            metrics["gpu/utilization"] = torch.cuda.utilization(world.device) / 100
    return metrics


Batch = TypeVar("Batch")


class TrainMeter:
    """Steps, seconds, and float64 sums on the device of count, loss and correct predictions of one epoch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps = 0
        """Steps of this epoch, those before an interruption included."""
        self.wait_seconds = 0.0
        """Time spent waiting for batches."""
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._first_step = 0
        self._seconds = 0.0
        self._running_since: float | None = None

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Start the epoch's clock, pass batches through, and add up the time spent waiting for them."""
        self._running_since = time.perf_counter()
        self._first_step = self.steps
        remaining = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(remaining)
            except StopIteration:
                return
            finally:
                self.wait_seconds += time.perf_counter() - asked
            yield batch

    def stop_clock(self) -> None:
        """The steps are over."""
        self._seconds, self._running_since = self.seconds, None

    @property
    def steps_of_pass(self) -> int:
        """Steps since :meth:`timed`: those of this attempt at the epoch."""
        return self.steps - self._first_step

    @property
    def seconds(self) -> float:
        """Time spent on this epoch's steps."""
        return self._seconds + (time.perf_counter() - self._running_since if self._running_since is not None else 0)

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch, or a piece of one, with its mean loss. Queues work on the device; reads nothing back."""
        correct = (logits.detach().argmax(dim=1) == labels).sum()
        count = len(labels)
        self._sums += torch.stack([torch.full_like(loss, count), loss.detach() * count, correct]).double()

    def end_step(self) -> None:
        """All of a step's batch was counted."""
        self.steps += 1

    def averages(self, world: World) -> tuple[float, float]:
        """Mean loss and top-1 (a share of 1) over all processes. Waits for the device."""
        count, loss, correct = self._totals(world).tolist()
        return loss / max(count, 1), correct / max(count, 1)

    def _totals(self, world: World) -> torch.Tensor:
        return sum_over_world(self._sums.clone(), world)

    def state_dict(self, world: World) -> dict[str, Any]:
        """For a checkpoint; every process must ask. Waits for the device."""
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "wait_seconds": self.wait_seconds,
            "sums": self._totals(world).cpu(),
        }

    def load_state_dict(self, state: dict[str, Any], world: World) -> None:
        """Go on with the sums of all processes, which from here on the first one keeps."""
        self.steps, self._seconds = state["steps"], state["seconds"]
        self.wait_seconds = state["wait_seconds"]
        self._sums.copy_(state["sums"] if world.is_main else torch.zeros(3))
