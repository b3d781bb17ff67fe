"""What a run says of itself: the banner at its start, and a line for every epoch."""

import os

import torch

from rebar.cli import warn
from rebar.loading import Loader
from rebar.reporting import console
from rebar.reporting.durations import in_words
from rebar.reporting.environment import environment
from rebar.reporting.run_folder import RunFolder
from rebar.reporting.run_log import RunLog
from rebar.training.config import TrainConfig
from rebar.training.control import RunControl
from rebar.training.distributed import World
from rebar.training.effects import settings_without_effect
from rebar.training.estimate import FEWEST_STEPS, first_told, seconds_left
from rebar.training.model import count_parameters
from rebar.training.recipe import recipe_in_words
from rebar.training.resolution import all_resolutions
from rebar.training.state import TrainState


def announce(
    config: TrainConfig,
    state: TrainState,
    train_loader: Loader,
    val_loader: Loader,
    folder: RunFolder,
    log: RunLog,
    world: World,
) -> None:
    """Say what is about to run, and warn where it is not what the recipe was written for."""
    per_process = config.training.batch_size
    if config.dist.world_size not in (0, world.size) and config.lr.lr_scaling == "none":
        warn(
            f"this recipe is written for {config.dist.world_size} processes; with {world.size} the global batch is "
            f"{per_process * world.size} instead of {per_process * config.dist.world_size}, at the same learning rate"
        )
    if config.lr.lr_schedule_type == "cyclic" and config.lr.lr_peak_epoch >= config.training.epochs:
        warn(
            f"lr.lr_peak_epoch {config.lr.lr_peak_epoch} is not before the end of {config.training.epochs} epochs: "
            "the learning rate never comes down"
        )
    for sentence in settings_without_effect(config):
        warn(sentence)
    gpus = world.size if world.device.type == "cuda" else 0
    facts = {
        "model": f"{state.arch}, {count_parameters(state.model):,} parameters",
        "data": f"{train_loader.num_samples:,} training and {val_loader.num_samples:,} validation pictures, "
        f"{len(state.class_names)} classes",
        "world": f"{world.size} x {_device_name(world)}, global batch {per_process * world.size}",
        "recipe": recipe_in_words(config, global_batch=train_loader.global_batch, precision=state.precision, gpus=gpus),
        "run": str(folder.path) + _progress_note(state, config),
    }
    if time := _time_note(config, state, train_loader):
        facts["time"] = time
    if world.is_main:
        print(console.table(facts), flush=True)
    start = {"epoch": state.epoch, "parameters": count_parameters(state.model), "world_size": world.size}
    device = {"device": _device_name(world), "precision": state.precision}
    log.write("start", {**start, **device, "environment": environment()})


def _progress_note(state: TrainState, config: TrainConfig) -> str:
    """Where a resumed run stands; nothing for a new one."""
    if state.epoch == state.meter.steps == 0:
        return ""
    if state.epoch >= config.training.epochs:
        return ", complete already: more --epochs go on with it, --resume none --overwrite starts afresh"
    within = f" and {state.meter.steps} steps of the next" if state.meter.steps else ""
    return f", going on after epoch {state.epoch}{within}"


def _time_note(config: TrainConfig, state: TrainState, loader: Loader) -> str:
    """How long it will take by the speed that a resumed run had; else when that is told; nothing for a trial."""
    training, resolutions = config.training, all_resolutions(config.training.epochs, config.resolution)
    if training.dry_run or training.find_lr or state.epoch >= training.epochs:
        return ""
    if state.meter.steps >= FEWEST_STEPS and state.meter.seconds > 0:
        speed, at = state.meter.steps * loader.global_batch / state.meter.seconds, resolutions[state.epoch]
    elif state.last_metrics.get("throughput/samples_per_second", 0) > 0:
        speed = state.last_metrics["throughput/samples_per_second"]
        at = int(state.last_metrics["train/resolution"])
    else:
        step = first_told(len(loader), log_every=config.logging.log_every)
        if step == 0:
            return "estimated after the first epoch" if training.epochs > 1 else ""
        return f"estimated after {step} steps; beforehand by --dry-run"
    left = seconds_left(
        state.steps(len(loader)),
        loader.global_batch / speed,
        at=at,
        resolutions=resolutions,
        steps_per_epoch=len(loader),
        max_steps=training.max_steps,
    )
    return (
        f"about {in_words(left)} left, without evaluation; by {speed:,.0f} pictures/s at {at} px before" if left else ""
    )


def tell_epoch(config: TrainConfig, state: TrainState, loader: Loader, control: RunControl, world: World) -> None:
    """Print the epoch's line, and warn where it waited for data."""
    metrics = state.last_metrics
    left = _estimated_seconds_left(config, state, metrics)
    print(console.epoch_line(state.epoch, config.training.epochs, metrics, seconds_left=left), flush=True)
    cores = len(os.sched_getaffinity(0)) // world.size_here
    control.health.on_epoch(state.epoch, metrics["time/data_wait_fraction"], loader.num_workers, cores)


def _estimated_seconds_left(config: TrainConfig, state: TrainState, metrics: dict[str, float]) -> float:
    """By the last epoch's time, as the coming epochs' numbers of pixels go."""
    now = metrics["train/resolution"]
    coming = all_resolutions(config.training.epochs, config.resolution)[state.epoch :]
    return metrics["time/epoch_seconds"] * sum((size / now) ** 2 for size in coming)


def shows_progress(config: TrainConfig, world: World) -> bool:
    """Whether this process draws progress bars."""
    return world.is_main and config.logging.show_progress


def _device_name(world: World) -> str:
    """The GPU's name, or 'CPU'."""
    return torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
