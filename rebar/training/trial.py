"""Train a few steps of a run without changing it, for --dry-run and --find-lr."""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from rebar.loading import Batch
from rebar.training.distributed import sum_over_world
from rebar.training.execution import rng_states, set_rng_states
from rebar.training.metrics import TrainMeter
from rebar.training.run import Run

TrainSteps = Callable[[Run, Iterable[Batch], Callable[[int], float]], Iterator[torch.Tensor]]
"""The type of ``train_imagenet.train_steps``, which yields the mean loss of each batch."""


@contextmanager
def restore_afterwards(run: Run) -> Iterator[None]:
    """Restore the model, average, optimizer, scaler, meter, learning rate and RNG states when the context ends."""
    state, device = run.state, run.world.device
    stateful: list[Any] = [state.model, state.optimizer, state.scaler]
    stateful += [state.average] if state.average else []
    before = [copy.deepcopy(part.state_dict()) for part in stateful]
    random_states, meter, lr = rng_states(device), state.meter, state.lr
    state.meter = TrainMeter(device)
    try:
        yield
    finally:
        for part, saved in zip(stateful, before, strict=True):
            part.load_state_dict(saved)
        state.optimizer.zero_grad(set_to_none=True)
        state.meter, state.lr = meter, lr
        set_rng_states(random_states, device)


def trial_losses(run: Run, train_steps: TrainSteps, rates: Sequence[float], resolution: int) -> Iterator[torch.Tensor]:
    """Train one step at each learning rate on training batches of ``resolution`` pixels.

    Yields each step's mean loss over all ranks, on the device. Every rank must use it.
    """
    epochs = (run.train_loader.epoch(epoch, resolution) for epoch in itertools.count())
    batches = itertools.islice(itertools.chain.from_iterable(epochs), len(rates))
    for loss in train_steps(run, batches, rates.__getitem__):
        yield sum_over_world(loss.float().clone(), run.world) / run.world.size
