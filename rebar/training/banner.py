"""Print the banner at the start of a run, with a summary of the recipe, and a line after every epoch."""

import os
from pathlib import Path

import torch

from rebar.augment.policy import describe_techniques
from rebar.cli import count, warn
from rebar.loading.options import all_resolutions
from rebar.models.build import count_parameters
from rebar.optim.schedules import SCHEDULES, LearningRateConfig, peak_lr
from rebar.reporting import console
from rebar.reporting.console import format_duration
from rebar.reporting.log import environment
from rebar.training.config import TrainConfig, unused_options
from rebar.training.distributed import World
from rebar.training.metrics import MIN_STEPS, first_estimate_step, seconds_left
from rebar.training.run import Run


def print_banner(run: Run) -> None:
    """Print and log a summary of the run. Warn about options that have no effect or contradict the recipe."""
    config, state, world = run.config, run.state, run.world
    _warn_about_contradictions(config, world)
    for warning in unused_options(config):
        warn(warning)
    parameters, precision = count_parameters(state.model), state.precision
    gpus = world.size if world.device.type == "cuda" else 0
    validation = count(run.val_loader.num_samples, "validation image")
    facts = {
        "model": f"{state.arch}, {parameters:,} parameters",
        "data": f"{run.train_loader.num_samples:,} training and {validation}, "
        f"{count(len(state.class_names), 'class', 'classes')}",
        "world": f"{world.size} x {_device_name(world)}, batch {config.training.batch_size} per rank, "
        f"global batch {config.training.batch_size * world.size}",
        "recipe": recipe_summary(config, global_batch=state.global_batch, precision=precision, gpus=gpus),
        "run": str(run.folder.path) + _progress_note(run),
    }
    if time := _time_note(run):
        facts["time"] = time
    if world.is_main:
        print(console.table(facts), flush=True)
    start = {"epoch": state.epoch, "parameters": parameters, "world_size": world.size}
    device = {"device": _device_name(world), "precision": precision}
    run.log.write("start", {**start, **device, "changed": run.changed_options, "environment": environment()})


def print_epoch(run: Run) -> None:
    """Print a line about the last complete epoch, on rank 0. Warn if training waited for data."""
    if not run.world.is_main:
        return
    state, metrics = run.state, run.state.last_metrics
    epochs, resolution = run.config.training.epochs, metrics["train/resolution"]
    remaining = all_resolutions(epochs, run.config.resolution)[state.epoch :]
    left = metrics["time/epoch_seconds"] * sum((size / resolution) ** 2 for size in remaining)
    if not run.has_heading:
        print(console.epoch_heading())
        run.has_heading = True
    print(console.epoch_line(state.epoch, epochs, metrics, seconds_left=left, is_best=state.is_best), flush=True)
    if metrics.get("data/corrupt_samples"):
        print(f"corrupt images replaced: {metrics['data/corrupt_samples']}", flush=True)
    cores = len(os.sched_getaffinity(0)) // run.world.local_size
    run.health.on_epoch(state.epoch, metrics["time/data_wait_fraction"], run.train_loader.num_workers, cores)


def recipe_summary(config: TrainConfig, *, global_batch: int, precision: str, gpus: int) -> str:
    """Summarize a recipe, such as '16 epochs, 160 to 192 px, sgd, cyclic lr 1.7, weight decay 0.0001, bf16'.

    ``precision`` is the resolved one; ``gpus`` is the number of GPUs, 0 on the CPU.
    """
    training, resolution, execution = config.training, config.resolution, config.execution
    regularization, averaging = config.regularization, config.averaging
    frozen, peak = config.checkpoint.freeze_lr, peak_lr(config.lr, global_batch=global_batch)
    scaling = _lr_scaling_note(config.lr, global_batch)
    momentum = "Nesterov momentum" if config.optimizer.nesterov and training.optimizer in ("sgd", "sgdw") else ""
    has_warmup = frozen is None and SCHEDULES[config.lr.lr_schedule_type].has_warmup
    ramps = resolution.max_res > resolution.min_res
    parts = {
        count(training.epochs, "epoch"): True,
        f"{resolution.min_res} to {resolution.max_res} px": ramps,
        f"{resolution.min_res} px": not ramps,
        f"{training.optimizer}, {config.lr.lr_schedule_type} lr {peak:g}{scaling}": frozen is None,
        f"constant lr {frozen or 'of the last step'}": frozen is not None,
        f"warmup {count(config.lr.warmup_epochs, 'epoch')}": has_warmup and config.lr.warmup_epochs > 0,
        momentum: momentum and training.momentum > 0,
        f"weight decay {training.weight_decay:g}": training.weight_decay > 0,
        f"label smoothing {training.label_smoothing:g}": training.label_smoothing > 0,
        f"gradient clipping {config.optimizer.clip_norm:g}": config.optimizer.clip_norm > 0,
        "BlurPool": training.use_blurpool,
        "BCE": config.loss.loss_type == "bce",
        f"{regularization.augmentation} augmentation": regularization.augmentation != "basic",
        f"{regularization.repeated_augmentation} crops per image": regularization.repeated_augmentation > 1,
        "MixUp": regularization.use_mixup,
        "CutMix": regularization.use_cutmix,
        **dict.fromkeys(describe_techniques(regularization), True),
        f"stochastic depth {regularization.stochastic_depth:g}": regularization.stochastic_depth > 0,
        f"SAM {config.optimizer.sam_rho:g}": config.optimizer.sam_rho > 0,
        "EMA": averaging.use_ema and not averaging.use_swa,
        "SWA": averaging.use_swa and not averaging.use_ema,
        "EMA until SWA starts": averaging.use_ema and averaging.use_swa,
        f"{execution.accumulate} micro-batches per step": execution.accumulate > 1,
        {"32": "float32"}.get(precision, precision): True,
        "gradient checkpointing": execution.gradient_checkpointing,
        "SyncBatchNorm": execution.sync_bn and gpus > 1,
        "torch.compile": execution.compile_model,
        f"channel statistics of {Path(config.data.stats_file).name}": config.data.stats_file != "",
        "pretrained weights": config.model.pretrained,
        "zero-init residual": config.model.zero_init_residual and not config.model.pretrained,
        f"at most {count(training.max_steps, 'step')}": training.max_steps > 0,
        f"at most {count(training.budget_hours, 'hour')}": training.budget_hours > 0,
        f"until top-1 {training.target_top1:g}": training.target_top1 > 0,
    }
    return ", ".join(part for part, is_on in parts.items() if is_on)


def _lr_scaling_note(config: LearningRateConfig, global_batch: int) -> str:
    """Describe how the learning rate was scaled; empty if it was not."""
    if config.lr_scaling == "none" or config.max_lr is not None or global_batch == config.base_batch:
        return ""
    ratio = f"{global_batch} / {config.base_batch}"
    return f" ({config.lr:g} x {ratio if config.lr_scaling == 'linear' else f'sqrt({ratio})'})"


def _warn_about_contradictions(config: TrainConfig, world: World) -> None:
    if config.dist.world_size not in (0, world.size) and config.lr.lr_scaling == "none":
        warn(
            f"dist.world_size is {config.dist.world_size}, but the run has {count(world.size, 'rank')}: the "
            f"learning rate {peak_lr(config.lr, global_batch=0):g} is not scaled to the global batch of "
            f"{config.training.batch_size * world.size}. To scale it, set --base-batch to the batch size that it is for"
        )
    if config.lr.lr_schedule_type == "cyclic" and config.lr.lr_peak_epoch >= config.training.epochs:
        warn(
            f"lr.lr_peak_epoch is {config.lr.lr_peak_epoch}, but there are only "
            f"{count(config.training.epochs, 'epoch')}: the learning rate rises until the end"
        )


def _progress_note(run: Run) -> str:
    """Describe the progress of a resumed run; empty for a new one."""
    state = run.state
    if state.epoch == state.meter.steps == 0:
        return ""
    if state.epoch >= run.config.training.epochs:
        return ", complete; more --epochs extend it, --resume none --overwrite restarts it from scratch"
    if state.meter.steps == 0:
        return f", resuming after epoch {state.epoch}"
    return f", resuming after {state.meter.steps} of {count(run.steps_per_epoch, 'step')} of epoch {state.epoch + 1}"


def _time_note(run: Run) -> str:
    """Describe the remaining time of a resumed run, or when a new run will estimate it; empty for a dry run."""
    config, state = run.config, run.state
    training, resolutions = config.training, all_resolutions(config.training.epochs, config.resolution)
    if training.dry_run or training.find_lr or state.epoch >= training.epochs:
        return ""
    if state.meter.steps >= MIN_STEPS and state.meter.seconds > 0:
        speed, resolution = state.meter.steps * state.global_batch / state.meter.seconds, resolutions[state.epoch]
    elif state.last_metrics.get("throughput/samples_per_second", 0) > 0:
        speed = state.last_metrics["throughput/samples_per_second"]
        resolution = int(state.last_metrics["train/resolution"])
    else:
        step = first_estimate_step(run.steps_per_epoch, log_every=config.logging.log_every)
        if step == 0:
            return "estimated after the first epoch" if training.epochs > 1 else ""
        return f"estimated after {count(step, 'step')}; --dry-run estimates it without training"
    left = seconds_left(
        run.step,
        state.global_batch / speed,
        measured_at=resolution,
        resolutions=resolutions,
        steps_per_epoch=run.steps_per_epoch,
        max_steps=training.max_steps,
    )
    if not left:
        return ""
    return (
        f"about {format_duration(left)} left, without evaluation, at the {console.images_per_second(speed)} measured "
        f"before at {resolution} px"
    )


def _device_name(world: World) -> str:
    """Return the name of the GPU, or 'CPU'."""
    return torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
