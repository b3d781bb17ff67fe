"""--dry-run and --find-lr: train a few steps of a run without changing it."""

import copy
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from rebar.cli import count, warn
from rebar.loading import Batch
from rebar.reporting import console
from rebar.reporting.console import format_duration, format_gb
from rebar.training.distributed import sum_over_world
from rebar.training.evaluation import validate
from rebar.training.execution import rng_states, set_rng_states
from rebar.training.lr_finder import LrFindings, analyze, exponential_rates, plot_findings, until_divergence
from rebar.training.metrics import TrainMeter, peak_host_gb
from rebar.training.resolution import all_resolutions
from rebar.training.run import Run

_WARM_UP_STEPS, _TIMED_STEPS = 2, 5

TrainSteps = Callable[[Run, Iterable[Batch], Callable[[int], float]], Iterator[torch.Tensor]]
"""The type of ``train_imagenet.train_steps``, which yields the mean loss of each batch."""


def run_trial(run: Run, train_steps: TrainSteps) -> None:
    """Run the learning rate range test, the dry run, or both, as configured. Every rank must call it."""
    config, is_main = run.config, run.world.is_main
    if config.training.find_lr:
        findings = find_lr(run, train_steps)
        if is_main:
            show = print if findings.steepest else warn
            show(findings.advice())
            print(f"plot: {plot_findings(findings, run.folder.path)}", flush=True)
    if config.training.dry_run:
        resolutions = all_resolutions(config.training.epochs, config.resolution)
        facts = dry_run(run, train_steps, resolutions, price_per_hour=config.training.price_per_hour)
        facts["evaluation"] = f"one batch of {validate(run, max_batches=1).num_samples:,} images evaluated"
        if is_main:
            print(console.table(facts, title="dry run"), flush=True)


def dry_run(run: Run, train_steps: TrainSteps, resolutions: Sequence[int], *, price_per_hour: float) -> dict[str, str]:
    """Train a few steps at each resolution. Return the estimated speed, time, memory and cost as text, by name.

    ``resolutions`` are in pixels, one per epoch. ``price_per_hour`` is in dollars; 0 omits the cost.
    """
    seconds_per_step: dict[int, float] = {}
    with restore_afterwards(run):
        for resolution in sorted(set(resolutions), reverse=True):  # largest first, so that OOM shows early
            seconds_per_step[resolution] = _seconds_per_step(run, train_steps, resolution)
    hours = run.steps_per_epoch * sum(seconds_per_step[resolution] for resolution in resolutions) / 3600
    speed = ", ".join(
        f"{console.format_rate(run.train_loader.global_batch / seconds)} at {resolution} px"
        for resolution, seconds in sorted(seconds_per_step.items())
    )
    facts = {
        "images/s": speed,
        "time": f"about {format_duration(3600 * hours)} for {count(len(resolutions), 'epoch')}, without "
        "evaluation and start-up",
        "memory": f"{format_gb(peak_host_gb())} on rank 0" + _gpu_memory(run.world.device),
    }
    if price_per_hour:
        facts["cost"] = f"about ${hours * price_per_hour:,.2f} at {price_per_hour:g} $/h"
    return facts


def _seconds_per_step(run: Run, train_steps: TrainSteps, resolution: int) -> float:
    """Time a few steps. Skip those whose batches were prefetched while the first step compiled."""
    times = []
    warm_up = _WARM_UP_STEPS + run.train_loader.batches_ahead
    for loss in trial_losses(run, train_steps, [0.0] * (warm_up + _TIMED_STEPS), resolution):
        loss.item()  # waits for the device
        times.append(time.perf_counter())
    return (times[-1] - times[warm_up - 1]) / _TIMED_STEPS


def _gpu_memory(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    return f", GPU {format_gb(peak / 1e9)} of {format_gb(total / 1e9)}"


def find_lr(run: Run, train_steps: TrainSteps) -> LrFindings:
    """Run the learning rate range test on training batches, then restore the run. Every rank must call it."""
    training = run.config.training
    rates = exponential_rates(training.find_lr_steps, lowest=training.find_lr_min, highest=training.find_lr_max)
    with restore_afterwards(run):
        losses = map(torch.Tensor.item, trial_losses(run, train_steps, rates, run.resolution))
        return analyze(rates, until_divergence(losses))


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
