"""Train an ImageNet classifier from .beton files, on one or many GPUs, or on the CPU.

    python write_dataset.py --split train && python write_dataset.py --split val      # once
    python train_imagenet.py --config-file rn50_configs/g5_1gpu.yaml
    torchrun --nproc_per_node=4 train_imagenet.py --config-file rn50_configs/g5_4gpu.yaml

The same command goes on where an earlier one stopped. `--help` lists every knob, `--print-config`
shows what a command would run with. The usual recipe is the one of ffcv-imagenet: SGD with momentum, a
learning rate that rises and falls linearly, label smoothing, BlurPool, small pictures first. Others, and
what each technique is good for: docs/training.md.
"""

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from rebar.cli import run_command, warn
from rebar.config import config_name, flatten_config, parse_config
from rebar.errors import RebarError
from rebar.loading import Loader, Normalizer
from rebar.loading.device import Augment
from rebar.loading.imagenet import IMAGENET_ON_HUB, build_train_loader, build_val_loader
from rebar.loading.statistics import read_statistics
from rebar.reporting import console
from rebar.reporting.environment import environment
from rebar.reporting.hub import prepare_repository
from rebar.reporting.memory import peak_host_gb
from rebar.reporting.plot import plot_run
from rebar.reporting.report import write_report
from rebar.reporting.run_folder import RunFolder
from rebar.reporting.run_log import RunLog
from rebar.training import aliases
from rebar.training.accumulation import pieces_of
from rebar.training.averaging import build_average
from rebar.training.batchnorm_statistics import reestimate_batchnorm
from rebar.training.checkpoint import keep_copies
from rebar.training.config import TrainConfig
from rebar.training.control import RunControl
from rebar.training.distributed import (
    World,
    join_world,
    share_buffers,
    wrap_distributed,
)
from rebar.training.dry_run import try_out
from rebar.training.effects import settings_without_effect
from rebar.training.evaluation import Evaluation, evaluate
from rebar.training.execution import allow_tf32, compile_for
from rebar.training.export import check_can_export, export_weights, forms
from rebar.training.losses import build_criterion
from rebar.training.lr_override import ScheduleSpan, learning_rate, resumed_schedule
from rebar.training.meter import TrainMeter
from rebar.training.model import count_parameters
from rebar.training.network import build_network
from rebar.training.optimizer import build_optimizer, clip_gradients, parameter_groups, set_learning_rate
from rebar.training.precision import autocast, gradient_scaler, resolve_precision
from rebar.training.preemption import EXIT_PREEMPTED, Interrupted
from rebar.training.publish import publish_or_warn
from rebar.training.recipe import recipe_in_words
from rebar.training.recording import recorded_run
from rebar.training.regularization.policy import build_regularizer
from rebar.training.resolution import resolution_at
from rebar.training.schedule import peak_lr
from rebar.training.seeding import seed_step
from rebar.training.state import TrainState
from rebar.training.uploaded_run import fetch_run


def main(argv: Sequence[str]) -> None:
    """Resolve the configuration, join the other processes, train."""
    argv = aliases.translate(argv)
    config = parse_config(
        TrainConfig,
        argv,
        description="Train an ImageNet classifier from .beton files.",
        example="torchrun --nproc_per_node=4 train_imagenet.py --config-file rn50_configs/g5_4gpu.yaml",
        aliases=aliases.table(),
    )
    config = fill_in_paths(config, config_name(argv))
    preempted = False
    with join_world() as world:
        try:
            train(config, world)
        except Interrupted as interrupted:
            if world.is_main:
                print(f"interrupted by {interrupted.reason}: all is saved, the same command goes on", flush=True)
            preempted = True
    if preempted:
        sys.exit(EXIT_PREEMPTED)


def train(config: TrainConfig, world: World) -> None:
    """The whole run, from the data to the summary."""
    torch.manual_seed(config.training.seed)
    torch.backends.cudnn.benchmark = True
    allow_tf32(config.execution.tf32)

    check_can_export(config.checkpoint.export)
    if config.logging.hf_repo and world.is_main:
        prepare_repository(config.logging.hf_repo)
    train_loader, val_loader = open_data(config, world)
    state = build_state(config, train_loader, world)
    folder = RunFolder(Path(config.logging.folder))
    if not (config.training.dry_run or config.training.find_lr):
        options = config.checkpoint
        fetch_run(config.logging.upload, folder, world, resume=options.resume, overwrite=options.overwrite)
    resumed = resume(config, state, train_loader, folder, world)
    model = wrap_distributed(state.model, world)
    if config.execution.compile_model:
        resolutions = {resolution_at(epoch, config.resolution) for epoch in range(config.training.epochs)}
        model = compile_for(model, resolutions, backend=config.execution.compile_backend)

    if config.training.eval_only:
        result = validate(config, state, val_loader, world)
        if world.is_main:
            print(f"{result.num_samples:,} pictures: {console.accuracy_line(result.metrics())}")
        return

    if config.training.dry_run or config.training.find_lr:
        try_out(config, state, model, train_loader, val_loader, folder, world)
        return

    steps_per_epoch = len(train_loader)
    with recorded_run(config, state, train_loader, folder, world, afresh=not resumed) as (log, control):
        announce(config, state, train_loader, val_loader, folder, log, world)
        while state.epoch < config.training.epochs and not control.is_over():
            metrics = train_one_epoch(config, state, model, train_loader, log, control, world)
            if config.logging.log_level > 0 or control.is_over() or state.epoch + 1 == config.training.epochs:
                settle_average(config, state, train_loader, world)
                metrics |= validate(config, state, val_loader, world, control).metrics()
            state.last_metrics = metrics | {"step": state.steps(steps_per_epoch)}
            seconds = state.train_seconds + state.meter.seconds
            log.write("epoch", {"epoch": state.epoch, "time/train_seconds": seconds, **state.last_metrics})
            if control.is_over() and state.meter.steps < steps_per_epoch:
                control.save()
                break  # within the epoch
            state.end_epoch()
            control.save()
            if world.is_main:
                keep_best_and_every(config, state, folder)
                tell_epoch(config, state, train_loader, control, world)
            control.limit = control.limit or target_reached(config.training.target_top1, metrics)
        finish(config, state, val_loader, folder, log, control, world, steps=state.steps(steps_per_epoch))


def train_one_epoch(
    config: TrainConfig,
    state: TrainState,
    model: nn.Module,
    loader: Loader,
    log: RunLog,
    control: RunControl,
    world: World,
) -> dict[str, float]:
    """One pass over the training data, or what is left of it; returns its metrics. The recipe is the loop below."""
    epochs, steps_per_epoch = config.training.epochs, len(loader)
    resolution = resolution_at(state.epoch, config.resolution)
    peak = peak_lr(config.lr, global_batch=loader.global_batch)
    criterion = build_criterion(config.loss, label_smoothing=config.training.label_smoothing)
    regularizer = build_regularizer(
        config.regularization, num_classes=state.num_classes, seed=config.training.seed, rank=world.rank
    )
    normalizer = build_normalizer(config, state, world, augment=regularizer.augment)
    meter, first_step = state.meter, state.epoch * steps_per_epoch + state.meter.steps
    batches = meter.timed(loader.epoch(state.epoch, resolution) if meter.steps < steps_per_epoch else ())
    title = f"epoch {state.epoch + 1}/{epochs}"
    shown = shows_progress(config, world)
    bar = console.progress(batches, title, total=steps_per_epoch, initial=meter.steps, enabled=shown)

    model.train()
    for step, (images, labels) in enumerate(normalizer.each(bar, first_step), start=first_step):
        state.lr = learning_rate(config, state.schedule, step, steps_per_epoch, peak=peak, last=state.lr)
        set_learning_rate(state.optimizer, state.lr)
        seed_step(config.training.seed, step, world.rank)
        images, targets = regularizer.mix(images, labels, step)

        state.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=world.device)
        for piece in pieces_of(model, images, targets, labels, count=config.execution.accumulate):
            with autocast(state.precision, world.device):
                logits = model(piece.images)
                piece_loss = criterion(logits, piece.targets)
            state.scaler.scale(piece_loss * piece.share).backward()
            loss += piece_loss.detach() * piece.share
            meter.add(piece_loss, logits, piece.labels)
        clip_gradients(model, state.optimizer, state.scaler, config.optimizer.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.average:
            state.average.after_step(state.model, step)
        meter.end_step()

        if step % config.logging.log_every == 0:  # the only place in the loop that waits for the device
            value = check_finite(loss.item(), step)
            control.health.on_loss(value, step, state.lr)
            if control.estimate:
                control.estimate.at_log_point(step)
            bar.set_postfix(loss=f"{value:.3f}", lr=f"{state.lr:.4f}", px=resolution, refresh=False)
            log.write(
                "step", {"step": step, "epoch": step / steps_per_epoch, "train/loss": value, "train/lr": state.lr}
            )
        if control.after_step(step + 1):
            break

    train_loss, train_top1 = meter.averages(world)
    meter.stop_clock()
    state.note_corrupt_samples(loader, world)
    return {
        "train/loss": check_finite(train_loss, first_step + meter.steps_of_pass),
        "train/top1": train_top1,
        "train/lr": state.lr,
        "train/resolution": resolution,
        "throughput/samples_per_second": meter.steps * loader.global_batch / meter.seconds,
        "data/corrupt_samples": len(state.corrupt_samples),
        "time/epoch_seconds": meter.seconds,
        "time/data_wait_fraction": meter.wait_seconds / meter.seconds,
        **memory_metrics(world),
    }


def settle_average(config: TrainConfig, state: TrainState, loader: Loader, world: World) -> None:
    """Give a plain mean of weights (SWA) the BatchNorm statistics that belong to it, from training pictures."""
    if state.average is None or not state.average.reestimates_batchnorm or state.average.updates == 0:
        return
    position = loader.state_dict(state.meter.steps_of_pass)
    pictures = loader.epoch(state.epoch + 1, resolution_at(state.epoch, config.resolution))
    reestimate_batchnorm(
        state.average.model,
        build_normalizer(config, state, world).each(pictures),
        count=config.averaging.swa_bn_batches,
        world=world,
        precision=state.precision,
    )
    loader.load_state_dict(position)


def validate(
    config: TrainConfig, state: TrainState, loader: Loader, world: World, control: RunControl | None = None
) -> Evaluation:
    """Exact accuracy of the model, or of its average, every validation picture once over all processes."""
    share_buffers(state.evaluated_model, world)
    batches = loader.epoch(0, config.validation.resolution)
    if control is not None:
        batches = control.watched(batches)
    shown = console.progress(batches, "validation", total=len(loader), enabled=shows_progress(config, world))
    return evaluate(
        state.evaluated_model,
        build_normalizer(config, state, world).each(shown),
        world=world,
        precision=state.precision,
        mirror=config.validation.lr_tta,
    )


# ------------------------------------------------------------------ before the first step


def fill_in_paths(config: TrainConfig, name: str | None) -> TrainConfig:
    """Default the data to $WRITE_DIR and the run's folder to runs/NAME."""
    write_dir = os.environ.get("WRITE_DIR")
    paths: dict[str, str] = {}
    for knob, split in (("train_dataset", "train"), ("val_dataset", "val")):
        written = str(Path(write_dir) / f"{split}.beton") if write_dir else ""
        paths[knob] = getattr(config.data, knob) or (IMAGENET_ON_HUB if config.data.use_hf else written)
        if not paths[knob]:
            raise RebarError(
                f"no {split} data: give --data.{knob} FILE.beton, or set WRITE_DIR to the folder that holds "
                f"{split}.beton (python write_dataset.py --split {split} writes it)"
            )
    folder = config.logging.folder or str(Path("runs") / (name or config.model.arch))
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, train_dataset=paths["train_dataset"], val_dataset=paths["val_dataset"]),
        logging=dataclasses.replace(config.logging, folder=folder),
    )


def open_data(config: TrainConfig, world: World) -> tuple[Loader, Loader]:
    """The training and the validation loader, their classes the same."""
    pin_memory = world.device.type == "cuda"
    train_loader = build_train_loader(
        config.data,
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        distributed=world.distributed,
        pin_memory=pin_memory,
        random_crops=config.regularization.augmentation != "none",
    )
    val_loader = build_val_loader(
        config.data,
        batch_size=config.validation.batch_size,
        crop_ratio=config.validation.crop_ratio,
        distributed=world.distributed,
        pin_memory=pin_memory,
    )
    names, val_names = train_loader.beton.class_names, val_loader.beton.class_names
    if names is not None and val_names is not None and names != val_names:
        raise RebarError(
            f"{config.data.train_dataset} and {config.data.val_dataset} do not name the same classes in the same "
            "order: write both from one dataset"
        )
    if val_loader.beton.num_classes > train_loader.beton.num_classes:
        raise RebarError(
            f"{config.data.val_dataset} has {val_loader.beton.num_classes} classes, {config.data.train_dataset} only "
            f"{train_loader.beton.num_classes}: write both from one dataset"
        )
    return train_loader, val_loader


def build_state(config: TrainConfig, train_loader: Loader, world: World) -> TrainState:
    """Model, optimizer and gradient scaler at their start; the same weights in every process."""
    beton = train_loader.beton
    num_classes = config.model.num_classes or beton.num_classes
    if num_classes < beton.num_classes:
        raise RebarError(f"model.num_classes is {num_classes}, but {beton.path} has {beton.num_classes} classes")
    model = build_network(config, num_classes=num_classes, world=world)
    groups = parameter_groups(
        model, config.training.weight_decay, decay_downsample_bn=config.training.decay_downsample_bn
    )
    names = list(beton.class_names or [str(label) for label in range(beton.num_classes)])
    precision = resolve_precision(config.training.precision, world.device)
    statistics = read_statistics(config.data.stats_file)
    return TrainState(
        model=model,
        optimizer=build_optimizer(
            config.training.optimizer,
            groups,
            config.optimizer,
            momentum=config.training.momentum,
            peak_lr=peak_lr(config.lr, global_batch=train_loader.global_batch),
        ),
        scaler=gradient_scaler(precision, world.device),
        precision=precision,
        arch=config.model.arch,
        num_classes=num_classes,
        class_names=names,
        meter=TrainMeter(world.device),
        schedule=ScheduleSpan(config.training.epochs, reset=config.checkpoint.reset_schedule),
        num_samples=train_loader.num_samples,
        global_batch=train_loader.global_batch,
        average=build_average(
            model, config.averaging, epochs=config.training.epochs, steps_per_epoch=len(train_loader)
        ),
        mean=statistics.mean,
        std=statistics.std,
    )


def build_normalizer(
    config: TrainConfig, state: TrainState, world: World, augment: Augment | None = None
) -> Normalizer:
    """What takes batches to the device, by the statistics of this run."""
    return Normalizer(
        world.device, mean=state.mean, std=state.std, channels_last=config.execution.channels_last, augment=augment
    )


def resume(config: TrainConfig, state: TrainState, train_loader: Loader, folder: RunFolder, world: World) -> bool:
    """Load the checkpoint that --resume means; whether there is one."""
    wanted = config.checkpoint.resume
    folder.check_free(wanted, overwrite=config.checkpoint.overwrite)
    checkpoint = folder.checkpoint_to_resume(wanted)
    if checkpoint is None:
        if config.training.eval_only and not config.model.pretrained:
            raise RebarError(
                f"training.eval_only: {folder.path} has no checkpoint; give --resume FILE, or --pretrained for "
                "torchvision's weights"
            )
        return False
    state.load(checkpoint, flatten_config(config), world)
    if not config.training.eval_only:
        state.find_place_in(train_loader)
        state.schedule = resumed_schedule(
            config,
            state.schedule,
            lr=state.lr,
            peak=peak_lr(config.lr, global_batch=train_loader.global_batch),
            epoch=state.epoch,
            step=state.steps(len(train_loader)),
            steps_per_epoch=len(train_loader),
        )
    return True


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
    facts = {
        "model": f"{state.arch}, {count_parameters(state.model):,} parameters",
        "data": f"{train_loader.num_samples:,} training and {val_loader.num_samples:,} validation pictures, "
        f"{len(state.class_names)} classes",
        "world": f"{world.size} x {device_name(world)}, global batch {per_process * world.size}",
        "recipe": recipe_in_words(config),
        "run": str(folder.path) + progress_note(state, config),
    }
    if world.is_main:
        print(console.table(facts), flush=True)
    start = {"epoch": state.epoch, "parameters": count_parameters(state.model), "world_size": world.size}
    log.write("start", {**start, "device": device_name(world), "environment": environment()})


def progress_note(state: TrainState, config: TrainConfig) -> str:
    """Where a resumed run stands; nothing for a new one."""
    if state.epoch == state.meter.steps == 0:
        return ""
    if state.epoch >= config.training.epochs:
        return ", complete already: more --epochs go on with it, --resume none --overwrite starts afresh"
    within = f" and {state.meter.steps} steps of the next" if state.meter.steps else ""
    return f", going on after epoch {state.epoch}{within}"


# ------------------------------------------------------------------ while it runs, and at the end


def keep_best_and_every(config: TrainConfig, state: TrainState, folder: RunFolder) -> None:
    """Keep the checkpoint of the epoch that just ended, where the policy says so."""
    top1 = state.last_metrics.get("val/top1", 0.0)
    is_best = config.checkpoint.keep_best and top1 >= state.best_top1 > 0
    keep_copies(folder.last_checkpoint, epoch=state.epoch, is_best=is_best, keep_every=config.checkpoint.keep_every)


def target_reached(target: float, metrics: dict[str, float]) -> str:
    """In words that validation top-1 has reached ``target`` (a share of 1, or percent); empty if it has not."""
    share = target / 100 if target > 1 else target
    top1 = max(metrics.get("val/top1", 0.0), metrics.get("val/top1_tta", 0.0))
    return f"training.target_top1: {top1:.2%} is at least {share:.2%}" if share and top1 >= share else ""


def check_finite(loss: float, step: int) -> float:
    """The loss, unless it is NaN or infinite: then training is over, and the last checkpoint is good."""
    if not math.isfinite(loss):
        raise RebarError(
            f"the training loss became {loss} at or before step {step}: the last checkpoint is from before. "
            "Lower --lr, or try --training.precision bf16 or 32"
        )
    return loss


def tell_epoch(config: TrainConfig, state: TrainState, loader: Loader, control: RunControl, world: World) -> None:
    """Print the epoch's line, and warn where it waited for data."""
    metrics = state.last_metrics
    left = estimated_seconds_left(config, state, metrics)
    print(console.epoch_line(state.epoch, config.training.epochs, metrics, seconds_left=left), flush=True)
    cores = len(os.sched_getaffinity(0)) // world.size_here
    control.health.on_epoch(state.epoch, metrics["time/data_wait_fraction"], loader.num_workers, cores)


def estimated_seconds_left(config: TrainConfig, state: TrainState, metrics: dict[str, float]) -> float:
    """By the last epoch's time, as the coming epochs' numbers of pixels go."""
    now = metrics["train/resolution"] ** 2
    coming = [resolution_at(epoch, config.resolution) ** 2 for epoch in range(state.epoch, config.training.epochs)]
    return metrics["time/epoch_seconds"] * sum(coming) / now


def shows_progress(config: TrainConfig, world: World) -> bool:
    """Whether this process draws progress bars."""
    return world.is_main and config.logging.show_progress


def device_name(world: World) -> str:
    """The GPU's name, or 'CPU'."""
    return torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"


def memory_metrics(world: World) -> dict[str, float]:
    """Peak memory of this process, GB; how busy its GPU was in the last second, where NVIDIA's library tells."""
    metrics = {"memory/host_peak_gb": round(peak_host_gb(), 3)}
    if world.device.type == "cuda":
        metrics["memory/gpu_peak_gb"] = round(torch.cuda.max_memory_allocated(world.device) / 1e9, 3)
        with contextlib.suppress(ImportError, RuntimeError):
            metrics["gpu/utilization"] = torch.cuda.utilization(world.device) / 100
    return metrics


def finish(
    config: TrainConfig,
    state: TrainState,
    val_loader: Loader,
    folder: RunFolder,
    log: RunLog,
    control: RunControl,
    world: World,
    *,
    steps: int,
) -> None:
    """Log how the run ended, draw it, and print the summary."""
    if state.last_metrics.get("step") != steps:  # a limit was reached before this attempt began
        state.last_metrics = {"step": steps} | validate(config, state, val_loader, world, control).metrics()
    parameters = count_parameters(state.model)
    metrics = {
        **memory_metrics(world),
        **state.last_metrics,
        "time/train_seconds": state.train_seconds + state.meter.seconds,
    }
    log.write("end", {"epoch": state.epoch, "parameters": parameters, **metrics})
    if world.is_main:
        for suffix in forms(config.checkpoint.export):
            weights = state.evaluated_model.state_dict()
            export_weights(folder.path / f"weights{suffix}", weights, exported_facts(config, state))
        with contextlib.suppress(RebarError):  # killed before its first epoch was logged, it has nothing to draw
            plot_run(folder.log, folder.plot)
        write_report(folder.path)
        if config.logging.hf_repo:
            publish_or_warn(folder, config.logging.hf_repo)
        print("\n" + console.summary(state.arch, parameters, state.epoch, metrics, folder), flush=True)


def exported_facts(config: TrainConfig, state: TrainState) -> dict[str, object]:
    """What somebody who loads the exported weights has to know."""
    return {
        "arch": state.arch,
        "num_classes": state.num_classes,
        "class_names": state.class_names,
        "use_blurpool": config.training.use_blurpool,
        "mean": list(state.mean),
        "std": list(state.std),
        "metrics": state.last_metrics,
    }


if __name__ == "__main__":
    run_command(main)
