"""What is run instead of the epochs: --dry-run and --find-lr. Neither changes the run."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rebar.cli import warn
from rebar.reporting import console
from rebar.reporting.console import in_words, peak_host_gb
from rebar.reporting.log import LoggingConfig, check_wandb_installed
from rebar.reporting.run_folder import RunFolder
from rebar.storage.huggingface import check_token
from rebar.training.config import TrainConfig
from rebar.training.evaluate import Evaluation
from rebar.training.lr_finder import find_lr, plot_findings
from rebar.training.resolution import all_resolutions, resolution_at
from rebar.training.trial import Trial
from rebar.training.uploaded_run import place_of, read_manifest

_WARM_UP, _TIMED = 2, 5  # steps, besides those whose batches the loader made while the first one was compiled


def run_trial(config: TrainConfig, trial: Trial, folder: RunFolder, *, one_batch: Callable[[], Evaluation]) -> None:
    """A range test with its plot and advice; or a few steps of every kind and what the run would take.

    ``one_batch`` evaluates one. Every process must take part.
    """
    is_main = trial.world.is_main
    if config.training.find_lr:
        resolution = resolution_at(trial.state.epoch, config.resolution)
        findings = find_lr(trial, resolution, steps=config.training.find_lr_steps)
        if is_main:
            tell = print if findings.steepest else warn
            tell(findings.advice())
            print(f"plot: {plot_findings(findings, folder.path)}", flush=True)
    if config.training.dry_run:
        sizes = all_resolutions(config.training.epochs, config.resolution)
        facts = dry_run(trial, sizes, price_per_hour=config.training.price_per_hour)
        facts["evaluation"] = f"one batch of {one_batch().num_samples:,} images went through"
        if is_main:
            print(console.table(facts, title="dry run"), flush=True)


def check_destinations_writable(config: LoggingConfig) -> None:
    """Raise RebarError where the run could not log or upload; nothing is made there.

    The right to make the hub's repository is not tried, only the token.
    """
    folder = RunFolder(Path(config.folder))
    folder.check_can_be_written()
    if config.wandb:
        check_wandb_installed()
    if config.hf_repo:
        check_token(config.hf_repo)
    if config.upload:
        read_manifest(place_of(config.upload, folder))


def dry_run(trial: Trial, resolutions: Sequence[int], *, price_per_hour: float) -> dict[str, str]:
    """A few steps at each of the epochs' resolutions; what the run would take, in words."""
    seconds_per_step: dict[int, float] = {}
    with trial.undone():
        for resolution in sorted(set(resolutions), reverse=True):  # the largest first: does it fit?
            seconds_per_step[resolution] = _seconds_per_step(trial, resolution)
    hours = len(trial.loader) * sum(seconds_per_step[resolution] for resolution in resolutions) / 3600
    speed = ", ".join(
        f"{trial.loader.global_batch / seconds:,.0f} at {resolution} px"
        for resolution, seconds in sorted(seconds_per_step.items())
    )
    facts = {
        "images/s": speed,
        "time": f"about {in_words(3600 * hours)} for {len(resolutions)} epochs, without evaluation and the first "
        "epoch's start",
        "memory": f"{peak_host_gb():.1f} GB in the first process" + _gpu_memory(trial.world.device),
    }
    if price_per_hour:
        facts["cost"] = f"about ${hours * price_per_hour:,.2f} at ${price_per_hour:g} an hour"
    return facts


def _seconds_per_step(trial: Trial, resolution: int) -> float:
    times = []
    warm_up = _WARM_UP + trial.loader.batches_ahead
    for loss in trial.losses([0.0] * (warm_up + _TIMED), resolution):
        loss.item()  # waits for the device
        times.append(time.perf_counter())
    return (times[-1] - times[warm_up - 1]) / _TIMED


def _gpu_memory(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    return f", GPU {peak / 1e9:.1f} of {total / 1e9:.1f} GB"
