"""A run's own steps on its own batches that leave no trace."""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rebar.loading import Batch, Loader, Normalizer
from rebar.training.distributed import World, sum_over_world
from rebar.training.metrics import TrainMeter
from rebar.training.rng import rng_states, set_rng_states
from rebar.training.state import TrainState

Step = Callable[[torch.Tensor, torch.Tensor, int, float], torch.Tensor]
"""Trains on normalised images ``[n, 3, h, w]`` and their labels, in the step of that number, at a learning rate.

Returns the mean loss before it, of this process, on the device; waits for nothing."""


class Trial:
    """Steps of a run on its training data, counted from 0, at rates and resolutions of one's choice."""

    def __init__(self, state: TrainState, loader: Loader, world: World, normalizer: Normalizer, step: Step) -> None:
        self.state, self.loader, self.world = state, loader, world
        self._normalizer, self._step = normalizer, step

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Afterwards weights, averages, optimizer, scaler, meter and random numbers are as they were before."""
        state, device = self.state, self.world.device
        holders: list[Any] = [state.model, state.optimizer, state.scaler]
        holders += [state.average] if state.average else []
        before = [copy.deepcopy(holder.state_dict()) for holder in holders]
        random_states, meter = rng_states(device), state.meter
        state.meter = TrainMeter(device)
        state.model.train()
        try:
            yield
        finally:
            for holder, saved in zip(holders, before, strict=True):
                holder.load_state_dict(saved)
            state.optimizer.zero_grad(set_to_none=True)
            state.meter = meter
            set_rng_states(random_states, device)

    def losses(self, rates: Iterable[float], resolution: int) -> Iterator[torch.Tensor]:
        """Train a step at each learning rate; yields the mean loss before it, over all processes, on the device.

        ``resolution`` is in pixels. Every process must take part.
        """
        batches = self._normalizer.each(self._endless(resolution))
        for (number, rate), (images, labels) in zip(enumerate(rates), batches, strict=False):
            loss = self._step(images, labels, number, rate)
            yield sum_over_world(loss.float().clone(), self.world) / self.world.size

    def _endless(self, resolution: int) -> Iterator[Batch]:
        for epoch in itertools.count():
            yield from self.loader.epoch(epoch, resolution)
