"""Build a run from its configuration: data, model, optimizer, and the checkpoint to resume from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rebar.cli import count, warn
from rebar.errors import RebarError
from rebar.loading import Loader
from rebar.loading.imagenet import build_train_loader, build_val_loader, read_statistics
from rebar.loading.options import all_resolutions
from rebar.models.build import build_network
from rebar.optim.averaging import build_average
from rebar.optim.optimizers import build_optimizer, parameter_groups
from rebar.optim.schedules import ScheduleSpan, peak_lr
from rebar.reporting.run_folder import RunFolder
from rebar.reporting.wandb_log import check_wandb_installed
from rebar.storage.huggingface import check_token, prepare_repository
from rebar.training.config import TrainConfig
from rebar.training.distributed import World, wait_for_all, wrap_distributed
from rebar.training.execution import allow_tf32, compile_model, gradient_scaler, resolve_precision
from rebar.training.metrics import TrainMeter
from rebar.training.resume import load_checkpoint, resolve_resume
from rebar.training.run import Run
from rebar.training.state import TrainState
from rebar.training.upload import run_store
from rebar.training.weights import check_export_format, export_suffixes


def build_run(config: TrainConfig, world: World, changed_options: Mapping[str, Any] | None = None) -> Run:
    """Open the data, build the model and optimizer, and load the checkpoint to resume from. Every rank must call it.

    Raises RebarError if the data, the checkpoint or a destination of the results cannot be used.
    """
    check_data_is_given(config)
    torch.manual_seed(config.training.seed)
    torch.backends.cudnn.benchmark = True
    allow_tf32(config.execution.tf32)
    check_destinations(config, world)
    train_loader, val_loader = open_data(config, world)
    state = build_state(config, train_loader, world)
    folder = RunFolder(Path(config.logging.folder))
    config = resolve_resume(config, folder, world)
    is_resumed = load_checkpoint(config, state, train_loader, folder, world)
    model = wrap_model(state.model, config, world)
    data = (train_loader, val_loader)
    return Run(config, world, folder, state, model, *data, is_resumed, changed_options or {})


def check_data_is_given(config: TrainConfig) -> None:
    """Raise RebarError if a dataset is missing."""
    datasets = (("train", "training", config.data.train_dataset), ("val", "validation", config.data.val_dataset))
    for split, kind, path in datasets:
        if not path:
            raise RebarError(
                f"data.{split}_dataset: no {kind} data was given. Pass --data.{split}_dataset FILE.beton, or set "
                f"WRITE_DIR to the folder with {split}.beton (written by python write_dataset.py --split {split}).",
                code="data-not-given",
            )


def check_destinations(config: TrainConfig, world: World) -> None:
    """Raise RebarError if the run could not log, export, upload or publish its results.

    A dry run checks all destinations and creates nothing.
    """
    training, logging, folder = config.training, config.logging, RunFolder(Path(config.logging.folder))
    if training.eval_only:
        return
    if world.is_main:
        folder.check_writable()
    if training.find_lr and not training.dry_run:
        return
    for suffix in export_suffixes(config.checkpoint.export):
        check_export_format(suffix)
    if not world.is_main:
        return
    if logging.wandb:
        check_wandb_installed()
    if logging.hf_repo and training.dry_run:
        check_token(logging.hf_repo)  # the permission to create the repository is not checked
    elif logging.hf_repo:
        prepare_repository(logging.hf_repo)
    if logging.upload and training.dry_run:  # otherwise resolve_resume reads it
        run_store(logging.upload, folder).read_manifest()


def open_data(config: TrainConfig, world: World) -> tuple[Loader, Loader]:
    """Return the training and the validation loader. Every rank must call it.

    Raises RebarError if the two datasets have different classes.
    """
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
    wait_for_all(world)  # a node that first converts its dataset may take much longer
    names, val_names = train_loader.beton.class_names, val_loader.beton.class_names
    if names is not None and val_names is not None and names != val_names:
        raise RebarError(
            f"{config.data.val_dataset}: its class names differ from those of {config.data.train_dataset}. Write both "
            "from the same dataset.",
            code="data-class-mismatch",
        )
    if val_loader.beton.num_classes > train_loader.beton.num_classes:
        raise RebarError(
            f"{config.data.val_dataset}: it has {count(val_loader.beton.num_classes, 'class', 'classes')}, "
            f"{config.data.train_dataset} has only {train_loader.beton.num_classes}. Write both from the same dataset.",
            code="data-class-mismatch",
        )
    return train_loader, val_loader


def build_state(config: TrainConfig, train_loader: Loader, world: World) -> TrainState:
    """Build the model, optimizer and gradient scaler. The seed gives every rank the same weights.

    Raises RebarError if the model has fewer classes than the data.
    """
    beton, training = train_loader.beton, config.training
    num_classes = config.model.num_classes or beton.num_classes
    if num_classes < beton.num_classes:
        raise RebarError(
            f"model.num_classes is {num_classes}, but {beton.path} has "
            f"{count(beton.num_classes, 'class', 'classes')}. Pass --num-classes {beton.num_classes}, or 0.",
            code="data-class-mismatch",
        )
    model = _build_model(config, num_classes, world)
    groups = parameter_groups(model, training.weight_decay, decay_downsample_bn=training.decay_downsample_bn)
    precision = resolve_precision(training.precision, world.device)
    statistics = read_statistics(config.data.stats_file)
    return TrainState(
        model=model,
        optimizer=build_optimizer(
            training.optimizer,
            groups,
            config.optimizer,
            momentum=training.momentum,
            peak_lr=peak_lr(config.lr, global_batch=train_loader.global_batch),
        ),
        scaler=gradient_scaler(precision, world.device),
        precision=precision,
        arch=config.model.arch,
        num_classes=num_classes,
        class_names=list(beton.class_names or [str(label) for label in range(beton.num_classes)]),
        meter=TrainMeter(world.device),
        schedule=ScheduleSpan(training.epochs, reset=config.checkpoint.reset_schedule),
        num_samples=train_loader.num_samples,
        global_batch=train_loader.global_batch,
        average=build_average(model, config.averaging, epochs=training.epochs, steps_per_epoch=len(train_loader)),
        mean=statistics.mean,
        std=statistics.std,
    )


def _build_model(config: TrainConfig, num_classes: int, world: World) -> nn.Module:
    sync_batchnorm = config.execution.sync_bn and world.distributed and world.device.type == "cuda"
    if config.execution.sync_bn and not sync_batchnorm:
        warn(f"execution.sync_bn has no effect {'on a CPU' if world.device.type == 'cpu' else 'with one rank'}")
    return build_network(
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


def wrap_model(model: nn.Module, config: TrainConfig, world: World) -> nn.Module:
    """Wrap the model in DistributedDataParallel and torch.compile, as configured."""
    model = wrap_distributed(model, world)
    if config.execution.compile_model:
        sizes = set(all_resolutions(config.training.epochs, config.resolution))
        model = compile_model(model, sizes, backend=config.execution.compile_backend)
    return model
