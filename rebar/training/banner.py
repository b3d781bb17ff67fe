"""What of a recipe is on, in a few words for the banner.

What a run says of itself: the banner at its start, and a line for every epoch.
"""

import os
from pathlib import Path

import torch

from rebar.cli import warn
from rebar.loading import Loader
from rebar.models.resnets import count_parameters
from rebar.optim.schedules import peak_lr
from rebar.reporting import console
from rebar.reporting.console import in_words
from rebar.reporting.log import RunLog, environment
from rebar.reporting.run_folder import RunFolder
from rebar.training.config import TrainConfig
from rebar.training.control import RunControl
from rebar.training.distributed import World
from rebar.training.estimate import FEWEST_STEPS, first_told, seconds_left
from rebar.training.resolution import all_resolutions
from rebar.training.state import TrainState
from rebar.training.unused_settings import unused_setting_names


def recipe_in_words(config: TrainConfig, *, global_batch: int, precision: str, gpus: int) -> str:
    """Such as '16 epochs, 160 to 192 px, sgd, cyclic lr 1.7, weight decay 0.0001, label smoothing 0.1, BlurPool, bf16'.

    ``precision`` is the resolved one; ``gpus`` how many processes train on one, 0 on a CPU.
    """
    training, resolution, execution = config.training, config.resolution, config.execution
    regularization, averaging = config.regularization, config.averaging
    held, peak = config.checkpoint.freeze_lr, peak_lr(config.lr, global_batch=global_batch)
    momentum = "Nesterov's momentum" if config.optimizer.nesterov and training.optimizer in ("sgd", "sgdw") else ""
    rises = held is None and config.lr.lr_schedule_type not in ("cyclic", "onecycle")
    ramps = resolution.max_res > resolution.min_res
    parts = {
        f"{training.epochs} epochs": True,
        f"{resolution.min_res} to {resolution.max_res} px": ramps,
        f"{resolution.min_res} px": not ramps,
        f"{training.optimizer}, {config.lr.lr_schedule_type} lr {peak:g}": held is None,
        f"lr held at {held or 'the last one'}": held is not None,
        f"warm-up of {config.lr.warmup_epochs:g} epochs": rises and config.lr.warmup_epochs > 0,
        momentum: momentum and training.momentum > 0,
        f"weight decay {training.weight_decay:g}": training.weight_decay > 0,
        f"label smoothing {training.label_smoothing:g}": training.label_smoothing > 0,
        f"gradients clipped at {config.optimizer.clip_norm:g}": config.optimizer.clip_norm > 0,
        "BlurPool": training.use_blurpool,
        "BCE": config.loss.loss_type == "bce",
        f"{regularization.augmentation} augmentation": regularization.augmentation != "basic",
        f"{regularization.repeated_augmentation} crops an image": regularization.repeated_augmentation > 1,
        "MixUp": regularization.use_mixup,
        "CutMix": regularization.use_cutmix,
        "RandAugment": regularization.use_randaugment,
        "TrivialAugment": regularization.use_trivialaugment,
        f"colour jitter {regularization.color_jitter:g}": regularization.color_jitter > 0,
        f"hue jitter {regularization.color_jitter_hue:g}": regularization.color_jitter_hue > 0,
        f"random erasing {regularization.random_erasing:g}": regularization.random_erasing > 0,
        f"stochastic depth {regularization.stochastic_depth:g}": regularization.stochastic_depth > 0,
        f"SAM {config.optimizer.sam_rho:g}": config.optimizer.sam_rho > 0,
        "EMA": averaging.use_ema,
        "SWA": averaging.use_swa,
        f"{execution.accumulate} pieces a batch": execution.accumulate > 1,
        {"32": "32 bit"}.get(precision, precision): True,
        "gradient checkpointing": execution.gradient_checkpointing,
        "SyncBatchNorm": execution.sync_bn and gpus > 1,
        "torch.compile": execution.compile_model,
        f"channel statistics of {Path(config.data.stats_file).name}": config.data.stats_file != "",
        "torchvision's weights": config.model.pretrained,
        "zero-init residual": config.model.zero_init_residual and not config.model.pretrained,
        f"at most {training.max_steps} steps": training.max_steps > 0,
        f"at most {training.budget_hours:g} hours": training.budget_hours > 0,
        f"until top-1 {training.target_top1:g}": training.target_top1 > 0,
    }
    return ", ".join(words for words, is_on in parts.items() if is_on)


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
    for sentence in unused_setting_names(config):
        warn(sentence)
    gpus = world.size if world.device.type == "cuda" else 0
    facts = {
        "model": f"{state.arch}, {count_parameters(state.model):,} parameters",
        "data": f"{train_loader.num_samples:,} training and {val_loader.num_samples:,} validation images, "
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
        f"about {in_words(left)} left, without evaluation; by {speed:,.0f} images/s at {at} px before" if left else ""
    )


def print_epoch(config: TrainConfig, state: TrainState, loader: Loader, control: RunControl, world: World) -> None:
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
