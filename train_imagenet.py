"""Train an ImageNet classifier from .beton files, on one or many GPUs, or on the CPU.

    python write_dataset.py --split train && python write_dataset.py --split val      # once
    python train_imagenet.py --config-file rn50_configs/g5_1gpu.yaml
    torchrun --nproc_per_node=4 train_imagenet.py --config-file rn50_configs/g5_4gpu.yaml

The same command goes on where an earlier one stopped. `--help` lists every knob, `--print-config`
shows what a command would run with. The usual recipe is the one of ffcv-imagenet: SGD with momentum, a
learning rate that rises and falls linearly, label smoothing, BlurPool, small images first. Others, and
what each technique is good for: docs/training.md.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from rebar.augment.policy import build_regularizer
from rebar.cli import run_command
from rebar.config import config_name, parse_config
from rebar.loading import Loader, Normalizer
from rebar.models.resnets import count_parameters
from rebar.optim.optimizers import clip_gradients, set_learning_rate
from rebar.optim.sam import perturbed_weights
from rebar.optim.schedules import build_schedule
from rebar.reporting import console
from rebar.reporting.log import RunLog
from rebar.reporting.run_folder import RunFolder
from rebar.training import aliases
from rebar.training.accumulation import split_microbatches
from rebar.training.banner import announce, print_epoch, shows_progress
from rebar.training.config import TrainConfig
from rebar.training.control import RunControl, target_reached
from rebar.training.distributed import World, join_world, share_buffers, wrap_distributed
from rebar.training.dry_run import run_trial
from rebar.training.error_hints import error_hints, evaluation_error_hints
from rebar.training.evaluate import Evaluation, evaluate, named_by_resolution
from rebar.training.execution import allow_tf32, autocast, compile_for, seed_step
from rebar.training.export import export_metadata, export_suffixes, export_weights
from rebar.training.health import check_finite
from rebar.training.losses import build_criterion
from rebar.training.metrics import memory_metrics
from rebar.training.preemption import EXIT_PREEMPTED, Interrupted
from rebar.training.publish import publish_or_warn
from rebar.training.resolution import all_resolutions, resolution_at
from rebar.training.resume import resolve_resume
from rebar.training.run import refusal_noted, run_context
from rebar.training.setup import (
    build_normalizer,
    build_state,
    check_destinations,
    fill_in_paths,
    name_folder,
    open_data,
    resume,
)
from rebar.training.state import TrainState
from rebar.training.trial import Step, Trial
from rebar.training.update_bn import update_bn


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
    config = name_folder(config, config_name(argv))
    preempted = False
    sizes = {"batch_size": config.training.batch_size, "accumulate": config.execution.accumulate}
    with refusal_noted(config), error_hints(precision=config.training.precision, **sizes), join_world() as world:
        try:
            train(fill_in_paths(config), world)
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

    check_destinations(config, world)
    train_loader, val_loader = open_data(config, world)
    state = build_state(config, train_loader, world)
    folder = RunFolder(Path(config.logging.folder))
    config = resolve_resume(config, folder, world)
    resumed = resume(config, state, train_loader, folder, world)
    model = wrap_distributed(state.model, world)
    if config.execution.compile_model:
        sizes = set(all_resolutions(config.training.epochs, config.resolution))
        model = compile_for(model, sizes, backend=config.execution.compile_backend)

    if config.training.eval_only:
        result = validate(config, state, val_loader, world)
        if world.is_main:
            print(f"{result.num_samples:,} images: {console.accuracy_line(result.metrics())}")
        return

    if config.training.dry_run or config.training.find_lr:
        announce(config, state, train_loader, val_loader, folder, RunLog(None), world)
        trial = Trial(state, train_loader, world, *build_step(config, state, model, world))
        run_trial(config, trial, folder, one_batch=lambda: validate(config, state, val_loader, world, max_batches=1))
        return

    steps_per_epoch = len(train_loader)
    with run_context(config, state, train_loader, folder, world, afresh=not resumed) as (log, control):
        announce(config, state, train_loader, val_loader, folder, log, world)
        while state.epoch < config.training.epochs and not control.is_over():
            metrics = train_one_epoch(config, state, model, train_loader, log, control, world)
            if config.logging.log_level > 0 or control.is_over() or state.epoch + 1 == config.training.epochs:
                update_average_bn(config, state, train_loader, world)
                metrics |= validate(config, state, val_loader, world, control).metrics()
                control.health.on_validation(metrics["val/loss"], state.epoch + 1)
            state.last_metrics = metrics | {"step": state.steps(steps_per_epoch)}
            seconds = state.train_seconds + state.meter.seconds
            log.write("epoch", {"epoch": state.epoch, "time/train_seconds": seconds, **state.last_metrics})
            if control.is_over() and state.meter.steps < steps_per_epoch:
                control.save()
                break  # within the epoch
            state.end_epoch()
            control.save()  # a thread writes it while the next epoch runs
            if world.is_main:
                print_epoch(config, state, train_loader, control, world)
            control.limit = control.limit or target_reached(config.training.target_top1, metrics)
        control.wait_until_saved()
        finish(config, state, train_loader, val_loader, folder, log, control, world)
    if world.is_main and config.logging.hf_repo:
        publish_or_warn(folder, config.logging.hf_repo)


def train_one_epoch(
    config: TrainConfig,
    state: TrainState,
    model: nn.Module,
    loader: Loader,
    log: RunLog,
    control: RunControl,
    world: World,
) -> dict[str, float]:
    """One pass over the training data, or what is left of it; returns its metrics."""
    epochs, steps_per_epoch = config.training.epochs, len(loader)
    resolution = resolution_at(state.epoch, config.resolution)
    schedule = build_schedule(
        config.lr,
        state.schedule,
        steps_per_epoch=steps_per_epoch,
        global_batch=loader.global_batch,
        frozen_lr=config.checkpoint.freeze_lr,
        last_lr=state.lr,
    )
    normalizer, train_on = build_step(config, state, model, world)
    meter, first_step = state.meter, state.epoch * steps_per_epoch + state.meter.steps
    batches = meter.timed(loader.epoch(state.epoch, resolution) if meter.steps < steps_per_epoch else ())
    title = f"epoch {state.epoch + 1}/{epochs}"
    shown = shows_progress(config, world)
    bar = console.progress(batches, title, total=steps_per_epoch, initial=meter.steps, enabled=shown)

    model.train()
    for step, (images, labels) in enumerate(normalizer.each(bar, first_step), start=first_step):
        state.lr = schedule(step)
        loss = train_on(images, labels, step, state.lr)
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


def build_step(config: TrainConfig, state: TrainState, model: nn.Module, world: World) -> tuple[Normalizer, Step]:
    """What takes batches to the device, and what trains on one of them: the recipe."""
    criterion = build_criterion(config.loss, label_smoothing=config.training.label_smoothing)
    regularizer = build_regularizer(
        config.regularization, num_classes=state.num_classes, seed=config.training.seed, rank=world.rank
    )

    def forward_backward(
        batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor], step: int, *, measured: bool
    ) -> torch.Tensor:
        seed_step(config.training.seed, step, world.rank)
        state.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=world.device)
        for piece in split_microbatches(model, *batch, count=config.execution.accumulate):
            with autocast(state.precision, world.device):
                logits = model(piece.images)
                micro_loss = criterion(logits, piece.targets)
            state.scaler.scale(micro_loss * piece.share).backward()
            loss += micro_loss.detach() * piece.share
            if measured:
                state.meter.add(micro_loss, logits, piece.labels)
        return loss

    def train_on(images: torch.Tensor, labels: torch.Tensor, step: int, lr: float) -> torch.Tensor:
        set_learning_rate(state.optimizer, lr)
        images, targets = regularizer.mix(images, labels, step)
        batch = (images, targets, labels)
        loss = forward_backward(batch, step, measured=True)
        if config.optimizer.sam_is_due(step):
            with perturbed_weights(model.parameters(), config.optimizer.sam_rho):
                forward_backward(batch, step, measured=False)
        clip_gradients(model, state.optimizer, state.scaler, config.optimizer.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.average:
            state.average.after_step(state.model, step)
        return loss

    return build_normalizer(config, state, world, augment=regularizer.augment), train_on


def update_average_bn(config: TrainConfig, state: TrainState, loader: Loader, world: World) -> None:
    """Give a plain mean of weights (SWA) the BatchNorm statistics that belong to it, from training images."""
    if state.average is None or not state.average.needs_bn_update or state.average.updates == 0:
        return
    position = loader.state_dict(state.meter.steps_of_pass)
    images = loader.epoch(state.epoch + 1, resolution_at(state.epoch, config.resolution))
    update_bn(
        state.average.model,
        build_normalizer(config, state, world).each(images),
        count=config.averaging.swa_bn_batches,
        world=world,
        precision=state.precision,
    )
    loader.load_state_dict(position)


def validate(
    config: TrainConfig,
    state: TrainState,
    loader: Loader,
    world: World,
    control: RunControl | None = None,
    *,
    resolution: int | None = None,
    max_batches: int | None = None,
) -> Evaluation:
    """Exact accuracy of the model, or of its average, every validation image once over all processes."""
    share_buffers(state.evaluated_model, world)
    some = itertools.islice(loader.epoch(0, resolution or config.validation.resolution), max_batches)
    batches = some if control is None else control.watched(some)
    shown = console.progress(batches, "validation", total=len(loader), enabled=shows_progress(config, world))
    with evaluation_error_hints(batch_size=config.validation.batch_size, option="--validation.batch_size"):
        return evaluate(
            state.evaluated_model,
            build_normalizer(config, state, world).each(shown),
            world=world,
            precision=state.precision,
            mirror=config.validation.lr_tta,
        )


def validate_finally(config: TrainConfig, state: TrainState, loader: Loader, world: World, control: RunControl) -> None:
    """Accuracy at ``validation.final_resolutions``, kept with the checkpoint, so that it is found out once."""
    missing = [size for size in config.validation.at_the_end if f"val/top1_{size}px" not in state.last_metrics]
    for size in missing:
        metrics = state.last_metrics
        if size != config.validation.resolution:
            metrics = validate(config, state, loader, world, control, resolution=size).metrics()
        state.last_metrics |= named_by_resolution(metrics, size)
    if missing:
        control.save()


def finish(
    config: TrainConfig,
    state: TrainState,
    train_loader: Loader,
    val_loader: Loader,
    folder: RunFolder,
    log: RunLog,
    control: RunControl,
    world: World,
) -> None:
    """Log how the run ended, and print the summary."""
    steps = state.steps(len(train_loader))
    if state.last_metrics.get("step") != steps or "val/top1" not in state.last_metrics:
        # a limit was reached before this attempt began
        update_average_bn(config, state, train_loader, world)
        state.last_metrics = {"step": steps} | validate(config, state, val_loader, world, control).metrics()
    validate_finally(config, state, val_loader, world, control)
    parameters = count_parameters(state.model)
    metrics = {
        **memory_metrics(world),
        **state.last_metrics,
        "time/train_seconds": state.train_seconds + state.meter.seconds,
    }
    log.write("end", {"epoch": state.epoch, "parameters": parameters, **metrics})
    if world.is_main:
        facts = export_metadata(vars(state), use_blurpool=config.training.use_blurpool)
        for suffix in export_suffixes(config.checkpoint.export):
            weights = state.evaluated_model.state_dict()
            export_weights(folder.path / f"weights{suffix}", weights, facts)
        print("\n" + console.summary(state.arch, parameters, state.epoch, metrics, folder), flush=True)


def command() -> None:
    """Run as the console command ``rebar-train``."""
    run_command(main)


if __name__ == "__main__":
    command()
