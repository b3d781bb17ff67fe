"""Real steps on real batches that leave no trace: for a range test, and to see what a run would take."""

import copy
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rebar.loading import Loader, Normalizer
from rebar.reporting.durations import in_words
from rebar.reporting.memory import peak_host_gb
from rebar.training.distributed import World, sum_over_world
from rebar.training.optimizer import set_learning_rate
from rebar.training.precision import autocast
from rebar.training.rng import rng_states, set_rng_states
from rebar.training.state import TrainState

_WARM_UP, _TIMED = 2, 3  # steps


class Trial:
    """Plain optimisation steps of a run's model on its data."""

    def __init__(
        self, model: nn.Module, state: TrainState, loader: Loader, world: World, *, label_smoothing: float
    ) -> None:
        self.model, self.state, self.loader, self.world = model, state, loader, world
        self._criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Afterwards weights, optimizer, scaler and random numbers are as they were before."""
        state, device = self.state, self.world.device
        holders: tuple[Any, ...] = (state.model, state.optimizer, state.scaler)
        before = [copy.deepcopy(holder.state_dict()) for holder in holders]
        random_states = rng_states(device)
        try:
            yield
        finally:
            for holder, saved in zip(holders, before, strict=True):
                holder.load_state_dict(saved)
            state.optimizer.zero_grad(set_to_none=True)
            set_rng_states(random_states, device)

    def batches(self, resolution: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Normalised training batches without end, at a resolution (pixels)."""
        for epoch in itertools.count():
            yield from Normalizer(self.world.device).each(self.loader.epoch(epoch, resolution))

    def step(self, images: torch.Tensor, labels: torch.Tensor, lr: float) -> torch.Tensor:
        """One step at a learning rate; the mean loss before it, over all processes, on the device."""
        state = self.state
        set_learning_rate(state.optimizer, lr)
        state.optimizer.zero_grad(set_to_none=True)
        with autocast(state.precision, self.world.device):
            loss = self._criterion(self.model(images), labels)
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        return sum_over_world(loss.detach().float().clone(), self.world) / self.world.size


def dry_run(trial: Trial, resolutions: Sequence[int], *, price_per_hour: float) -> dict[str, str]:
    """A few steps at each of the epochs' resolutions; what the run would take, in words."""
    seconds_per_step: dict[int, float] = {}
    trial.model.train()
    with trial.undone():
        for resolution in sorted(set(resolutions), reverse=True):  # the largest first: does it fit?
            seconds_per_step[resolution] = _seconds_per_step(trial, resolution)
    hours = len(trial.loader) * sum(seconds_per_step[resolution] for resolution in resolutions) / 3600
    speed = ", ".join(
        f"{trial.loader.global_batch / seconds:,.0f} at {resolution} px"
        for resolution, seconds in sorted(seconds_per_step.items())
    )
    facts = {
        "pictures/s": speed,
        "time": f"about {in_words(3600 * hours)} for {len(resolutions)} epochs, without evaluation and the first "
        "epoch's start",
        "memory": f"{peak_host_gb():.1f} GB in the first process" + _gpu_memory(trial.world.device),
    }
    if price_per_hour:
        facts["cost"] = f"about ${hours * price_per_hour:,.2f} at ${price_per_hour:g} an hour"
    return facts


def _seconds_per_step(trial: Trial, resolution: int) -> float:
    times = []
    for images, labels in itertools.islice(trial.batches(resolution), _WARM_UP + _TIMED):
        trial.step(images, labels, lr=0.0).item()  # waits for the device
        times.append(time.perf_counter())
    return (times[-1] - times[_WARM_UP - 1]) / _TIMED


def _gpu_memory(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    return f", GPU {peak / 1e9:.1f} of {total / 1e9:.1f} GB"
