"""--dry-run and --find-lr: check the data, training steps and destinations of a run without changing it."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from rebar.cli import warn
from rebar.reporting import console
from rebar.reporting.console import format_duration
from rebar.reporting.environment import peak_host_gb
from rebar.reporting.log import LoggingConfig, check_wandb_installed
from rebar.reporting.run_folder import RunFolder
from rebar.storage.huggingface import check_token
from rebar.training.lr_finder import find_lr, plot_findings
from rebar.training.resolution import all_resolutions
from rebar.training.run import Run
from rebar.training.trial import TrainSteps, restore_afterwards, trial_losses
from rebar.training.uploaded_run import run_store
from rebar.training.validation import validate

_WARM_UP_STEPS, _TIMED_STEPS = 2, 5


def run_trial(run: Run, train_steps: TrainSteps) -> None:
    """Run the learning rate range test, the dry run, or both, as configured. Every rank must call it."""
    config, is_main = run.config, run.world.is_main
    if config.training.find_lr:
        findings = find_lr(run, train_steps, steps=config.training.find_lr_steps)
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


def check_destinations_writable(config: LoggingConfig) -> None:
    """Raise RebarError if the run could not log, upload or publish. Creates nothing.

    For the Hugging Face Hub, only the token is checked, not the permission to create the repository.
    """
    folder = RunFolder(Path(config.folder))
    folder.check_writable()
    if config.wandb:
        check_wandb_installed()
    if config.hf_repo:
        check_token(config.hf_repo)
    if config.upload:
        run_store(config.upload, folder).read_manifest()


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
        f"{run.train_loader.global_batch / seconds:,.0f} at {resolution} px"
        for resolution, seconds in sorted(seconds_per_step.items())
    )
    facts = {
        "images/s": speed,
        "time": f"about {format_duration(3600 * hours)} for {len(resolutions)} epochs, without evaluation and start-up",
        "memory": f"{peak_host_gb():.1f} GB on rank 0" + _gpu_memory(run.world.device),
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
    return f", GPU {peak / 1e9:.1f} of {total / 1e9:.1f} GB"
