"""The state of a training run: everything that changes during training and is saved in checkpoints."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rebar.cli import count, display_name, warn
from rebar.errors import RebarError
from rebar.loading import Loader
from rebar.loading.prefetch import IMAGENET_MEAN, IMAGENET_STD
from rebar.optim.averaging import WeightAverage
from rebar.optim.schedules import ScheduleSpan
from rebar.training.checkpoint import CheckpointError, plain_names, read_newest
from rebar.training.distributed import World, gather_from_all, sum_over_world
from rebar.training.execution import rng_states, set_rng_states
from rebar.training.metrics import ADVICE, TrainMeter, has_overflowed
from rebar.training.options import Precision

# Options that may differ in a resumed run without a warning, since they do not affect the result.
_MAY_CHANGE = (
    "data.train_dataset",
    "data.val_dataset",
    "data.num_workers",
    "data.on_error",
    "logging.",
    "checkpoint.",
    "validation.",
    "dist.",
    "execution.",
    "training.eval_only",
    "training.batch_size",  # the global batch is compared instead
    "training.global_batch_size",
    "training.max_steps",
    "training.budget_hours",
    "training.target_top1",
    "training.dry_run",
    "training.price_per_hour",
    "training.find_lr",
)


@dataclass
class TrainState:
    """Model, optimizer and progress of a run. ``model`` is the bare model, without DDP or torch.compile."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: Precision
    arch: str
    num_classes: int
    class_names: list[str]
    meter: TrainMeter
    """Metrics of the current epoch."""
    schedule: ScheduleSpan
    num_samples: int = 0
    """Training samples per epoch."""
    global_batch: int = 0
    """Samples per step, over all ranks."""
    average: WeightAverage | None = None
    """EMA or SWA, which is evaluated instead of the weights."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Channel means for normalization, for pixel values scaled to [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    """Channel standard deviations, for pixel values scaled to [0, 1]."""
    epoch: int = 0
    """Number of complete epochs."""
    lr: float = 0.0
    """Learning rate of the last step."""
    train_seconds: float = 0.0
    """Seconds of training in the complete epochs, without evaluation."""
    run_seconds: float = 0.0
    """Seconds of all earlier attempts, including evaluation."""
    best_top1: float = 0.0
    last_metrics: dict[str, float] = field(default_factory=dict)
    corrupt_samples: set[int] = field(default_factory=set)
    """Indices of the corrupt training samples that any rank replaced so far."""
    loader: dict[str, Any] | None = None
    """State of the training loader in a mid-epoch checkpoint; None otherwise."""

    def steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps of the run so far."""
        return self.epoch * steps_per_epoch + self.meter.steps

    @property
    def is_best(self) -> bool:
        """Whether the last complete epoch has the highest validation top-1 so far."""
        return self.last_metrics.get("val/top1", 0.0) >= self.best_top1 > 0

    @property
    def evaluated_model(self) -> nn.Module:
        """The weight average if it has been updated, else the model."""
        return self.average.model if self.average and self.average.updates > 0 else self.model

    def collect_corrupt_samples(self, loader: Loader, world: World) -> None:
        """Gather the corrupt samples that the loaders of all ranks replaced. Every rank must call it."""
        self.corrupt_samples.update(*gather_from_all([int(sample) for sample in loader.corrupt_samples], world))

    def end_epoch(self) -> None:
        """Advance to the next epoch. ``last_metrics`` must be the metrics of the current one."""
        self.train_seconds += self.meter.seconds
        self.epoch += 1
        self.best_top1 = max(self.best_top1, self.last_metrics.get("val/top1", 0.0))
        self.meter = TrainMeter(self.meter.device)
        self.loader = None

    # ------------------------------------------------------------------ saving

    def checkpoint_content(self, options: dict[str, Any], world: World) -> dict[str, Any]:
        """Return the content of a checkpoint, without copying tensors. ``options`` is the flat configuration.

        Every rank must call it; rank 0's result is the checkpoint. Raises CheckpointError if the epoch's loss,
        the weights, momenta or averages are not finite, so that the last good checkpoint is kept.
        """
        meter = self.meter.state_dict(world)
        self._check_finite(meter["sums"], world)
        return {
            "arch": self.arch,
            "num_classes": self.num_classes,
            "class_names": self.class_names,
            "epoch": self.epoch,
            "meter": meter,
            "loader": self.loader,
            "corrupt_samples": sorted(self.corrupt_samples),
            "schedule": self.schedule.state_dict(),
            "lr": self.lr,
            "num_samples": self.num_samples,
            "global_batch": self.global_batch,
            "train_seconds": self.train_seconds,
            "run_seconds": self.run_seconds,
            "best_top1": self.best_top1,
            "last_metrics": self.last_metrics,
            "config": options,
            "model": plain_names(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "mean": list(self.mean),
            "std": list(self.std),
            "rng": gather_from_all(rng_states(world.device), world),
        }

    def _check_finite(self, sums: torch.Tensor, world: World) -> None:
        """Raise CheckpointError on all ranks if any rank has NaN or infinity. ``sums`` are the meter's."""
        tensors = list(self.model.state_dict().values())
        tensors += self.average.model.state_dict().values() if self.average else ()
        for buffers in self.optimizer.state.values():
            tensors += [value for value in buffers.values() if isinstance(value, torch.Tensor)]
        weights_overflowed = sum_over_world(has_overflowed(tensors).float(), world).item() > 0
        if not weights_overflowed and sums.isfinite().all():
            return
        subject = "weights or their momenta" if sums.isfinite().all() else "training loss"
        position = f"epoch {self.epoch + 1}, by step {self.meter.steps}" if self.meter.steps else f"epoch {self.epoch}"
        raise CheckpointError(
            f"training diverged: the {subject} became NaN or infinite in {position}. These weights were not saved; "
            f"earlier checkpoints are kept. {ADVICE}",
            code="training-diverged",
        )

    # ------------------------------------------------------------------ resuming

    def load(self, path: Path, options: dict[str, Any], world: World) -> Path:
        """Load a checkpoint, or the one before it if it is damaged. Return the path of the file that was read.

        Warns about changed options. Raises CheckpointError for another model or dataset.
        """
        content, path = read_newest(path)
        check_compatible(content, path, arch=self.arch, class_names=self.class_names, num_classes=self.num_classes)
        if content["num_samples"] != self.num_samples:
            raise CheckpointError(
                f"checkpoint {path} was trained on {count(content['num_samples'], 'image')}, the training data has "
                f"{self.num_samples:,}. Use its training data, or start from scratch with --resume none --overwrite.",
                code="checkpoint-mismatch",
            )
        self._warn_about_changes(content, path, options)
        self.model.load_state_dict(plain_names(content["model"]))
        self._load_optimizer(content["optimizer"], path)
        if content["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(content["scaler"])
        self._load_average(content["average"], path)
        if len(content["rng"]) == world.size:  # with a different world size, each rank has different samples anyway
            set_rng_states(content["rng"][world.rank], world.device)
        self.meter.load_state_dict(content["meter"], world)
        self.schedule = ScheduleSpan.from_state(content["schedule"])
        self.epoch, self.loader, self.lr = content["epoch"], content["loader"], content["lr"]
        self.corrupt_samples = set(content["corrupt_samples"])
        self.train_seconds, self.run_seconds = content["train_seconds"], content["run_seconds"]
        self.best_top1, self.last_metrics = content["best_top1"], content["last_metrics"]
        return path

    def restore_position(self, loader: Loader) -> None:
        """Restore the loader's position within the epoch. Raises CheckpointError if its data or order differ."""
        if self.loader is None:
            return
        try:
            loader.load_state_dict(self.loader)
        except RebarError as error:
            reason = str(error).partition(". ")[0]
            raise CheckpointError(
                f"the checkpoint is from within epoch {self.epoch + 1}, which only the same data in the same order can "
                f"complete ({reason}). Use the data it was trained on, or start from scratch with --resume none "
                "--overwrite.",
                code="checkpoint-mismatch",
            ) from None
        is_complete = self.loader["epoch"] > self.epoch
        self.meter.steps = len(loader) if is_complete else self.loader["samples"] // loader.global_batch

    def _warn_about_changes(self, content: dict[str, Any], path: Path, options: dict[str, Any]) -> None:
        for name, value in options.items():
            before = content["config"].get(name, value)
            if before != value and not name.startswith(_MAY_CHANGE):
                warn(f"resuming with {name} = {value}; {path} was trained with {before}")
        if content["global_batch"] != self.global_batch:
            warn(
                f"resuming with a global batch of {self.global_batch}; {path} was trained with "
                f"{content['global_batch']}"
            )

    def _load_average(self, saved: dict[str, Any] | None, path: Path) -> None:
        """Load the checkpoint's weight average, or start a new one from its weights."""
        if self.average is None:
            return
        if saved is None:
            warn(f"{path} has no average of the weights: a new one starts now")
            self.average.model.load_state_dict(self.model.state_dict())
        else:
            self.average.load_state_dict(saved)

    def _load_optimizer(self, saved: dict[str, Any], path: Path) -> None:
        """Load the checkpoint's momentum buffers, but keep this run's hyperparameters."""
        own = [
            {name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups
        ]
        try:
            self.optimizer.load_state_dict(saved)
        except ValueError as error:
            raise CheckpointError(
                f"checkpoint {path} has other parameter groups ({error}). Use the value of "
                "--training.decay_downsample_bn that it was trained with.",
                code="checkpoint-mismatch",
            ) from None
        for group, hyperparameters in zip(self.optimizer.param_groups, own, strict=True):
            group.update(hyperparameters)
        for parameter, buffers in self.optimizer.state.items():
            for name, value in buffers.items():
                is_elementwise = isinstance(value, torch.Tensor) and value.shape == parameter.shape
                if is_elementwise and value.stride() != parameter.stride():  # fused steps ignore strides
                    buffers[name] = torch.empty_like(parameter).copy_(value)


def check_compatible(
    content: dict[str, Any], path: Path, *, arch: str, class_names: list[str], num_classes: int | None = None
) -> None:
    """Raise CheckpointError if a checkpoint has another architecture or other classes."""
    if content["arch"] != arch:
        raise CheckpointError(
            f"checkpoint {path} contains a {content['arch']}, not a {arch}. Pass --arch {content['arch']}, another "
            "--logging.folder, or --resume none --overwrite to start from scratch.",
            code="checkpoint-mismatch",
        )
    if num_classes is not None and content["num_classes"] != num_classes:
        raise CheckpointError(
            f"checkpoint {path} has {content['num_classes']} outputs, the model has {num_classes}. "
            f"Pass --num-classes {content['num_classes']}, or start from scratch with --resume none --overwrite.",
            code="checkpoint-mismatch",
        )
    from_scratch = ", or start from scratch with --resume none --overwrite"
    check_same_classes(content["class_names"], class_names, path, otherwise=from_scratch)


def check_same_classes(saved: list[str], class_names: list[str], path: Path | str, *, otherwise: str = "") -> None:
    """Raise CheckpointError if the classes of a checkpoint and a dataset differ. ``otherwise`` extends the advice."""
    advice = f"Use the dataset it was trained on{otherwise}."
    if len(saved) != len(class_names):
        raise CheckpointError(
            f"checkpoint {path} has {count(len(saved), 'class', 'classes')}, the dataset has {len(class_names)}. "
            f"{advice}",
            code="checkpoint-mismatch",
        )
    if saved != class_names:
        first = next(i for i, names in enumerate(zip(saved, class_names, strict=True)) if names[0] != names[1])
        raise CheckpointError(
            f"class {first} of checkpoint {path} is '{display_name(saved[first])}', class {first} of the dataset is "
            f"'{display_name(class_names[first])}'. {advice}",
            code="checkpoint-mismatch",
        )
