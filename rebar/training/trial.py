"""Real steps on real batches that leave no trace."""

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rebar.loading import Loader, Normalizer
from rebar.training.distributed import World, sum_over_world
from rebar.training.losses import Criterion
from rebar.training.optimizer import set_learning_rate
from rebar.training.precision import autocast
from rebar.training.rng import rng_states, set_rng_states
from rebar.training.state import TrainState


class Trial:
    """Plain optimisation steps of a run's model on its data."""

    def __init__(
        self, model: nn.Module, state: TrainState, loader: Loader, world: World, *, criterion: Criterion
    ) -> None:
        self.model, self.state, self.loader, self.world = model, state, loader, world
        self.normalizer = Normalizer(world.device, mean=state.mean, std=state.std)
        self._criterion = criterion

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
            yield from self.normalizer.each(self.loader.epoch(epoch, resolution))

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
