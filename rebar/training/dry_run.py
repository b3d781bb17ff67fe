"""What is run instead of the epochs: --dry-run and --find-lr. Neither changes the run."""

import itertools
import time
from collections.abc import Sequence

import torch
from torch import nn

from rebar.loading import Loader
from rebar.reporting import console
from rebar.reporting.durations import in_words
from rebar.reporting.memory import peak_host_gb
from rebar.reporting.run_folder import RunFolder
from rebar.training.config import TrainConfig
from rebar.training.distributed import World, share_buffers
from rebar.training.evaluation import evaluate
from rebar.training.failures import explained
from rebar.training.losses import build_criterion
from rebar.training.lr_finder import find_lr, plot_findings
from rebar.training.resolution import resolution_at
from rebar.training.state import TrainState
from rebar.training.trial import Trial

_WARM_UP, _TIMED = 2, 3  # steps


def try_out(
    config: TrainConfig,
    state: TrainState,
    model: nn.Module,
    train_loader: Loader,
    val_loader: Loader,
    folder: RunFolder,
    world: World,
) -> None:
    """A range test with its plot and advice; or a few steps of every kind and what the run would take."""
    criterion = build_criterion(config.loss, label_smoothing=config.training.label_smoothing)
    trial = Trial(model, state, train_loader, world, criterion=criterion)
    with explained(
        batch_size=config.training.batch_size,
        precision=state.precision,
        accumulate=config.execution.accumulate,
    ):
        if config.training.find_lr:
            resolution = resolution_at(state.epoch, config.resolution)
            findings = find_lr(trial, resolution, steps=config.training.find_lr_steps)
            if world.is_main:
                print(findings.advice())
                print(f"plot: {plot_findings(findings, folder.path)}", flush=True)
        if config.training.dry_run:
            resolutions = [resolution_at(epoch, config.resolution) for epoch in range(config.training.epochs)]
            facts = dry_run(trial, resolutions, price_per_hour=config.training.price_per_hour)
            share_buffers(state.model, world)
            batch = trial.normalizer(next(iter(val_loader.epoch(0, config.validation.resolution))))
            evaluate(state.model, [batch], world=world, precision=state.precision, mirror=config.validation.lr_tta)
            if world.is_main:
                print(console.table(facts | {"evaluation": "one batch went through"}, title="dry run"), flush=True)


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
