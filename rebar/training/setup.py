"""What stands before the first step: paths, data, model and optimizer, and the checkpoint to go on from."""

import dataclasses
import os
from pathlib import Path

from rebar.cli import warn
from rebar.config import flatten_config
from rebar.errors import RebarError
from rebar.loading import Loader, Normalizer
from rebar.loading.device import Augment, read_statistics
from rebar.loading.imagenet import IMAGENET_ON_HUB, build_train_loader, build_val_loader
from rebar.models.network import build_network
from rebar.optim.averaging import build_average
from rebar.optim.optimizers import build_optimizer, parameter_groups
from rebar.optim.schedules import ScheduleSpan, build_schedule, peak_lr
from rebar.reporting.run_folder import RunFolder
from rebar.storage.huggingface import prepare_repository
from rebar.training.config import TrainConfig
from rebar.training.distributed import World, gather_from_all, wait_for_all
from rebar.training.dry_run import check_destinations_writable
from rebar.training.execution import gradient_scaler, input_dtype, resolve_precision
from rebar.training.export import check_can_export
from rebar.training.metrics import TrainMeter
from rebar.training.state import TrainState
from rebar.training.uploaded_run import fetch_run


def name_folder(config: TrainConfig, name: str | None) -> TrainConfig:
    """Default the run's folder to runs/NAME."""
    folder = config.logging.folder or str(Path("runs") / (name or config.model.arch))
    return dataclasses.replace(config, logging=dataclasses.replace(config.logging, folder=folder))


def fill_in_paths(config: TrainConfig) -> TrainConfig:
    """Default the data to $WRITE_DIR."""
    write_dir = os.environ.get("WRITE_DIR")
    paths: dict[str, str] = {}
    for option, split in (("train_dataset", "train"), ("val_dataset", "val")):
        written = str(Path(write_dir) / f"{split}.beton") if write_dir else ""
        paths[option] = getattr(config.data, option) or (IMAGENET_ON_HUB if config.data.use_hf else written)
        if not paths[option]:
            raise RebarError(
                f"no {split} data: give --data.{option} FILE.beton, or set WRITE_DIR to the folder that holds "
                f"{split}.beton (python write_dataset.py --split {split} writes it)"
            )
    data = dataclasses.replace(config.data, train_dataset=paths["train_dataset"], val_dataset=paths["val_dataset"])
    return dataclasses.replace(config, data=data)


def check_destinations(config: TrainConfig, world: World) -> None:
    """Raise RebarError now, not after the last epoch, where the results could not be exported or published.

    A dry run looks at all places that the run would write to, and makes nothing there.
    """
    training = config.training
    if training.eval_only or (training.find_lr and not training.dry_run):
        return  # without results of its own
    check_can_export(config.checkpoint.export)
    if training.dry_run and world.is_main:
        check_destinations_writable(config.logging)
    elif config.logging.hf_repo and world.is_main:
        prepare_repository(config.logging.hf_repo)


def open_data(config: TrainConfig, world: World) -> tuple[Loader, Loader]:
    """The training and the validation loader, their classes the same. Every process must call it."""
    pin_memory = world.device.type == "cuda"
    train_loader = build_train_loader(
        config.data,
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        distributed=world.distributed,
        pin_memory=pin_memory,
        random_crops=config.regularization.augmentation != "none",
        copies=config.regularization.repeated_augmentation,
    )
    val_loader = build_val_loader(
        config.data,
        batch_size=config.validation.batch_size,
        crop_ratio=config.validation.crop_ratio,
        distributed=world.distributed,
        pin_memory=pin_memory,
    )
    wait_for_all(world)  # a machine that had to write its data first may come much later
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
    sync_batchnorm = config.execution.sync_bn and world.distributed and world.device.type == "cuda"
    if config.execution.sync_bn and not sync_batchnorm:
        warn(f"execution.sync_bn has no effect {'on a CPU' if world.device.type == 'cpu' else 'with one process'}")
    model = build_network(
        config.model.arch,
        num_classes=num_classes,
        device=world.device,
        channels_last=config.execution.channels_last,
        use_blurpool=config.training.use_blurpool,
        pretrained=config.model.pretrained,
        zero_init_residual=config.model.zero_init_residual,
        initialization=config.model.initialization,
        bce_bias=config.loss.loss_type == "bce",
        sync_batchnorm=sync_batchnorm,
        gradient_checkpointing=config.execution.gradient_checkpointing,
        stochastic_depth=config.regularization.stochastic_depth,
    )
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
        world.device,
        input_dtype(state.precision),
        mean=state.mean,
        std=state.std,
        channels_last=config.execution.channels_last,
        augment=augment,
    )


def resume(config: TrainConfig, state: TrainState, train_loader: Loader, folder: RunFolder, world: World) -> bool:
    """Load the checkpoint that --resume means, fetched first where the run was uploaded; whether there is one.

    Every process must call it. Raises RebarError where they would not all begin at the same step.
    """
    resumed = _resume(config, state, train_loader, folder, world)
    steps = gather_from_all(state.steps(len(train_loader)), world)
    if len(set(steps)) > 1:
        other = next(rank for rank, step in enumerate(steps) if step != steps[0])
        raise RebarError(
            f"{folder.path} does not hold the same checkpoint on all machines: process 0 would go on from step "
            f"{steps[0]:,}, process {other} from step {steps[other]:,}. Put the folder on a file system that they "
            "share, give --upload, or copy the newest checkpoint to all"
        )
    return resumed


def _resume(config: TrainConfig, state: TrainState, train_loader: Loader, folder: RunFolder, world: World) -> bool:
    wanted = config.checkpoint.resume
    if config.training.find_lr and wanted in ("auto", "none"):
        return False  # a range test is of untrained weights, unless a file is given
    if not (config.training.dry_run or config.training.find_lr):
        fetch_run(config.logging.upload, folder, world, resume=wanted, overwrite=config.checkpoint.overwrite)
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
        _resume_schedule(config, state, train_loader)
    return True


def _resume_schedule(config: TrainConfig, state: TrainState, loader: Loader) -> None:
    """Fit the schedule to the number of epochs, which may have changed. Warns if the learning rate jumps."""
    epochs, before, step = config.training.epochs, state.schedule.epochs, state.steps(len(loader))
    state.schedule = state.schedule.resumed(
        epochs, reset=config.checkpoint.reset_schedule, epoch=state.epoch, step=step, lr=state.lr
    )
    if epochs > max(state.epoch, before) and config.checkpoint.freeze_lr is None:
        schedule = build_schedule(
            config.lr, state.schedule, steps_per_epoch=len(loader), global_batch=loader.global_batch
        )
        if schedule(step) > 1.5 * state.lr:
            warn(
                f"with {epochs} epochs instead of {before}, the learning rate jumps from {state.lr:.4g} to "
                f"{schedule(step):.4g}. --reset-schedule restarts the schedule without a jump, --freeze-lr VALUE holds "
                "one value"
            )
