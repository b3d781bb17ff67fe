"""Train an ImageNet classifier from .beton files, on one or many GPUs, or on the CPU.

    python write_dataset.py --split train && python write_dataset.py --split val      # once
    python train_imagenet.py --config-file rn50_configs/g5_1gpu.yaml
    torchrun --nproc_per_node=4 train_imagenet.py --config-file rn50_configs/g5_4gpu.yaml

The same command goes on where an earlier one stopped. `--help` lists every knob, `--print-config`
shows what a command would run with. The usual recipe is the one of ffcv-imagenet: SGD with momentum, a
learning rate that rises and falls linearly, label smoothing, BlurPool, small pictures first. Others, and
what each technique is good for: docs/training.md.
"""

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from rebar.cli import run_command, warn
from rebar.config import config_name, flatten_config, parse_config, to_yaml
from rebar.errors import RebarError
from rebar.loading import Loader, Normalizer, WaitTimer, build_train_loader, build_val_loader
from rebar.loading.device import Augment
from rebar.loading.statistics import read_statistics
from rebar.reporting import console
from rebar.reporting.memory import peak_host_gb
from rebar.reporting.plot import plot_run
from rebar.reporting.run_folder import RunFolder
from rebar.reporting.run_log import RunLog, open_log
from rebar.training.accumulation import pieces_of
from rebar.training.averaging import build_average
from rebar.training.batchnorm_statistics import reestimate_batchnorm
from rebar.training.config import TrainConfig
from rebar.training.distributed import (
    World,
    join_world,
    share_buffers,
    sum_over_world,
    wait_for_all,
    wrap_distributed,
)
from rebar.training.effects import settings_without_effect
from rebar.training.evaluation import Evaluation, evaluate
from rebar.training.execution import allow_tf32, compile_for
from rebar.training.losses import build_criterion
from rebar.training.meter import TrainMeter
from rebar.training.model import count_parameters
from rebar.training.network import build_network
from rebar.training.optimizer import build_optimizer, clip_gradients, parameter_groups, set_learning_rate
from rebar.training.precision import autocast, gradient_scaler, resolve_precision
from rebar.training.regularization.policy import build_regularizer
from rebar.training.resolution import resolution_at
from rebar.training.schedule import lr_at, peak_lr
from rebar.training.seeding import seed_step
from rebar.training.state import TrainState


def main(argv: Sequence[str]) -> None:
    """Resolve the configuration, join the other processes, train."""
    config = parse_config(
        TrainConfig,
        argv,
        description="Train an ImageNet classifier from .beton files.",
        example="torchrun --nproc_per_node=4 train_imagenet.py --config-file rn50_configs/g5_4gpu.yaml",
    )
    config = fill_in_paths(config, config_name(argv))
    with join_world() as world:
        train(config, world)


def train(config: TrainConfig, world: World) -> None:
    """The whole run, from the data to the summary."""
    torch.manual_seed(config.training.seed)
    torch.backends.cudnn.benchmark = True
    allow_tf32(config.execution.tf32)

    train_loader, val_loader = open_data(config, world)
    state = build_state(config, train_loader, world)
    folder = RunFolder(Path(config.logging.folder))
    resume_or_start(config, state, folder, world)
    model = wrap_distributed(state.model, world)
    if config.execution.compile_model:
        resolutions = {resolution_at(epoch, config.resolution) for epoch in range(config.training.epochs)}
        model = compile_for(model, resolutions, backend=config.execution.compile_backend)

    if config.training.eval_only:
        result = validate(config, state, val_loader, world)
        if world.is_main:
            print(f"{result.num_samples:,} pictures: {console.accuracy_line(result.metrics())}")
        return

    settings = flatten_config(config)
    with open_log(folder.log, config.logging, is_main=world.is_main, settings=settings) as log:
        announce(config, state, train_loader, val_loader, folder, log, world)
        while state.epoch < config.training.epochs:
            metrics = train_one_epoch(config, state, model, train_loader, log, world)
            state.train_seconds += metrics["time/epoch_seconds"]
            state.epoch += 1
            if config.logging.log_level > 0 or state.epoch == config.training.epochs:
                settle_average(config, state, train_loader, world)
                metrics |= validate(config, state, val_loader, world).metrics()
            state.last_metrics = metrics
            log.write("epoch", {"epoch": state.epoch - 1, "time/train_seconds": state.train_seconds, **metrics})
            if world.is_main:
                state.save(folder.last_checkpoint, settings)
                print(console.epoch_line(state.epoch, config.training.epochs, metrics), flush=True)
            wait_for_all(world)
        finish(state, folder, log, world)


def train_one_epoch(
    config: TrainConfig, state: TrainState, model: nn.Module, loader: Loader, log: RunLog, world: World
) -> dict[str, float]:
    """One pass over the training data; returns its metrics. The recipe itself is the loop below."""
    epochs, steps_per_epoch = config.training.epochs, len(loader)
    resolution = resolution_at(state.epoch, config.resolution)
    peak = peak_lr(config.lr, global_batch=loader.global_batch)
    criterion = build_criterion(config.loss, label_smoothing=config.training.label_smoothing)
    regularizer = build_regularizer(
        config.regularization, num_classes=state.num_classes, seed=config.training.seed, rank=world.rank
    )
    normalizer = build_normalizer(config, state, world, augment=regularizer.augment)
    batches = WaitTimer(loader.epoch(state.epoch, resolution))
    title = f"epoch {state.epoch + 1}/{epochs}"
    bar = console.progress(batches, title, total=steps_per_epoch, enabled=world.is_main)
    meter = TrainMeter(world.device)
    started = time.perf_counter()

    model.train()
    first_step = state.epoch * steps_per_epoch
    for step, (images, labels) in enumerate(normalizer.each(bar, first_step), start=first_step):
        lr = lr_at(step, config.lr, epochs=epochs, steps_per_epoch=steps_per_epoch, peak=peak)
        set_learning_rate(state.optimizer, lr)
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

        if step % config.logging.log_every == 0:  # the only place in the loop that waits for the device
            value = check_finite(loss.item(), step)
            bar.set_postfix(loss=f"{value:.3f}", lr=f"{lr:.4f}", px=resolution, refresh=False)
            log.write("step", {"step": step, "epoch": step / steps_per_epoch, "train/loss": value, "train/lr": lr})

    train_loss, train_top1 = meter.averages(world)
    corrupt_samples = sum_over_world(torch.tensor(len(loader.corrupt_samples), device=world.device), world)
    seconds = time.perf_counter() - started
    return {
        "train/loss": check_finite(train_loss, step),
        "train/top1": train_top1,
        "train/lr": lr,
        "train/resolution": resolution,
        "throughput/samples_per_second": steps_per_epoch * loader.batch_size * world.size / seconds,
        "data/corrupt_samples": int(corrupt_samples.item()),
        "time/epoch_seconds": seconds,
        "time/data_wait_fraction": batches.seconds / seconds,
        **memory_metrics(world),
    }


def settle_average(config: TrainConfig, state: TrainState, loader: Loader, world: World) -> None:
    """Give a plain mean of weights (SWA) the BatchNorm statistics that belong to it, from training pictures."""
    if state.average is None or not state.average.reestimates_batchnorm or state.average.updates == 0:
        return
    position = loader.state_dict()
    reestimate_batchnorm(
        state.average.model,
        build_normalizer(config, state, world).each(
            loader.epoch(state.epoch, resolution_at(state.epoch - 1, config.resolution))
        ),
        count=config.averaging.swa_bn_batches,
        world=world,
        precision=state.precision,
    )
    loader.load_state_dict(position)


def validate(config: TrainConfig, state: TrainState, loader: Loader, world: World) -> Evaluation:
    """Exact accuracy of the model, or of its average, every validation picture once over all processes."""
    share_buffers(state.evaluated_model, world)
    batches = loader.epoch(0, config.validation.resolution)
    shown = console.progress(batches, "validation", total=len(loader), enabled=world.is_main)
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
        paths[knob] = getattr(config.data, knob) or (str(Path(write_dir) / f"{split}.beton") if write_dir else "")
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


def resume_or_start(config: TrainConfig, state: TrainState, folder: RunFolder, world: World) -> None:
    """Load the checkpoint that --resume means, or make the run's folder ready for a new run."""
    resume = config.checkpoint.resume
    folder.check_free(resume, overwrite=config.checkpoint.overwrite)
    checkpoint = folder.checkpoint_to_resume(resume)
    if checkpoint is None and config.training.eval_only and not config.model.pretrained:
        raise RebarError(
            f"training.eval_only: {folder.path} has no checkpoint; give --resume FILE, or --pretrained for "
            "torchvision's weights"
        )
    if checkpoint is not None:
        state.load(checkpoint, flatten_config(config))
    wait_for_all(world)  # nobody looks for the checkpoint any more
    if world.is_main and not config.training.eval_only:
        folder.prepare(afresh=checkpoint is None)
        folder.config.write_text(to_yaml(config))


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
        "run": str(folder.path) + progress_note(state, config),
    }
    if world.is_main:
        print(console.table(facts), flush=True)
    start = {"epoch": state.epoch, "parameters": count_parameters(state.model), "world_size": world.size}
    log.write("start", {**start, "device": device_name(world), "torch": torch.__version__})


def progress_note(state: TrainState, config: TrainConfig) -> str:
    """Where a resumed run stands; nothing for a new one."""
    if state.epoch == 0:
        return ""
    if state.epoch >= config.training.epochs:
        return ", complete already: more --epochs go on with it, --resume none --overwrite starts afresh"
    return f", going on after epoch {state.epoch}"


# ------------------------------------------------------------------ while it runs, and at the end


def check_finite(loss: float, step: int) -> float:
    """The loss, unless it is NaN or infinite: then training is over, and the last checkpoint is good."""
    if not math.isfinite(loss):
        raise RebarError(
            f"the training loss became {loss} at or before step {step}: the last checkpoint is from before. "
            "Lower --lr, or try --training.precision bf16 or 32"
        )
    return loss


def device_name(world: World) -> str:
    """The GPU's name, or 'CPU'."""
    return torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"


def memory_metrics(world: World) -> dict[str, float]:
    """Peak memory of this process, GB."""
    metrics = {"memory/host_peak_gb": round(peak_host_gb(), 3)}
    if world.device.type == "cuda":
        metrics["memory/gpu_peak_gb"] = round(torch.cuda.max_memory_allocated(world.device) / 1e9, 3)
    return metrics


def finish(state: TrainState, folder: RunFolder, log: RunLog, world: World) -> None:
    """Log how the run ended, draw it, and print the summary."""
    parameters = count_parameters(state.model)
    metrics = {**state.last_metrics, "time/train_seconds": state.train_seconds}
    log.write("end", {"epoch": state.epoch, "parameters": parameters, **metrics})
    if world.is_main:
        plot_run(folder.log, folder.plot)
        print("\n" + console.summary(state.arch, parameters, state.epoch, metrics, folder), flush=True)


if __name__ == "__main__":
    run_command(main)
