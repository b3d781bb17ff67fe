"""Everything of a run that changes while it trains: what a checkpoint must hold."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rebar.cli import warn
from rebar.errors import RebarError
from rebar.loading import Loader
from rebar.loading.device import IMAGENET_MEAN, IMAGENET_STD
from rebar.optim.averaging import WeightAverage
from rebar.optim.schedules import ScheduleSpan
from rebar.training.checkpoint import CheckpointError, HostMemory, plain_names, read_newest
from rebar.training.distributed import World, gather_from_all, sum_over_world
from rebar.training.execution import Precision
from rebar.training.health import ADVICE, overflowed
from rebar.training.metrics import TrainMeter
from rebar.training.rng import rng_states, set_rng_states

# Settings that say where and how to run, or when to stop, not what is trained.
_FREE_TO_CHANGE = (
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
    "training.batch_size",  # the global one counts, and is compared below
    "training.max_steps",
    "training.budget_hours",
    "training.target_top1",
    "training.dry_run",
    "training.price_per_hour",
    "training.find_lr",
)


@dataclass
class TrainState:
    """The bare model (not its DDP wrapper), what trains it, and how far it has come."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: Precision
    arch: str
    num_classes: int
    class_names: list[str]
    meter: TrainMeter
    """Of the epoch that is under way."""
    schedule: ScheduleSpan
    num_samples: int = 0
    """Training samples an epoch is made of."""
    global_batch: int = 0
    """Samples a step, of all processes together."""
    average: WeightAverage | None = None
    """Of the weights, evaluated in their place."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Of the channels, by which images are normalised; with ``std``."""
    std: tuple[float, ...] = IMAGENET_STD
    epoch: int = 0
    """Complete epochs."""
    lr: float = 0.0
    """The learning rate of the last step."""
    train_seconds: float = 0.0
    """Time spent on the steps of complete epochs."""
    run_seconds: float = 0.0
    """Time spent by all earlier attempts, evaluation included."""
    best_top1: float = 0.0
    last_metrics: dict[str, float] = field(default_factory=dict)
    corrupt_samples: set[int] = field(default_factory=set)
    """Those of the training data that were replaced so far, by any process and attempt."""
    loader: dict[str, Any] | None = None
    """The loader's position, in a checkpoint within an epoch."""
    host_memory: HostMemory = field(default_factory=HostMemory)
    """For the checkpoint that is being written."""

    def steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole run so far."""
        return self.epoch * steps_per_epoch + self.meter.steps

    def find_place_in(self, loader: Loader) -> None:
        """Let the loader go on where the checkpoint was taken. Raises CheckpointError where its data are others."""
        if self.loader is None:
            return
        try:
            loader.load_state_dict(self.loader)
        except RebarError as error:
            raise CheckpointError(
                f"the checkpoint is from within epoch {self.epoch + 1}, which only the same data in the same order can "
                f"complete: {error}. Give what it was trained with, or --resume none --overwrite to start afresh"
            ) from None
        whole = self.loader["epoch"] > self.epoch
        self.meter.steps = len(loader) if whole else self.loader["samples"] // loader.global_batch

    @property
    def is_best(self) -> bool:
        """Whether the epoch that ended last has the highest validation top-1 so far."""
        return self.last_metrics.get("val/top1", 0.0) >= self.best_top1 > 0

    def note_corrupt_samples(self, loader: Loader, world: World) -> None:
        """Add what the loaders of all processes replaced; every process must call it."""
        self.corrupt_samples.update(*gather_from_all([int(sample) for sample in loader.corrupt_samples], world))

    def end_epoch(self) -> None:
        """The epoch that was under way is complete; ``last_metrics`` are its metrics."""
        self.train_seconds += self.meter.seconds
        self.epoch += 1
        self.best_top1 = max(self.best_top1, self.last_metrics.get("val/top1", 0.0))
        self.meter = TrainMeter(self.meter.device)
        self.loader = None

    def take_checkpoint(self, settings: dict[str, Any], world: World) -> dict[str, Any] | None:
        """What a checkpoint holds, in host memory, until the next is taken; ``settings`` is the flat configuration.

        Every process must call it; None in all but the first. Raises CheckpointError where the epoch's loss, the
        weights or what belongs to them are no longer finite: the checkpoint before is then worth more.
        """
        meter = self.meter.state_dict(world)
        self._check_finite(meter["sums"], world)
        random_states = gather_from_all(rng_states(world.device), world)
        if not world.is_main:
            return None
        content = {
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
            "config": settings,
            "model": plain_names(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "mean": list(self.mean),
            "std": list(self.std),
            "rng": random_states,
        }
        copied: dict[str, Any] = self.host_memory.copy(content)
        return copied

    def _check_finite(self, sums: torch.Tensor, world: World) -> None:
        """``sums`` are the meter's. All processes raise, or none: they look at the sum of their findings."""
        tensors = list(self.model.state_dict().values())
        tensors += self.average.model.state_dict().values() if self.average else ()
        for of_parameter in self.optimizer.state.values():
            tensors += [value for value in of_parameter.values() if isinstance(value, torch.Tensor)]
        weights_are_lost = sum_over_world(overflowed(tensors).float(), world).item() > 0
        if not weights_are_lost and sums.isfinite().all():
            return
        what = "weights or their momenta" if sums.isfinite().all() else "training loss"
        within = f"epoch {self.epoch + 1}, by step {self.meter.steps} of it"
        raise CheckpointError(
            f"the {what} became NaN or infinite in {within if self.meter.steps else f'epoch {self.epoch}'}: nothing "
            f"was saved, the last checkpoint is from before. {ADVICE}"
        )

    def load(self, path: Path, settings: dict[str, Any], world: World) -> None:
        """Go on from a checkpoint. Raises CheckpointError where it is of another model or dataset."""
        content, path = read_newest(path)
        check_fits(content, path, arch=self.arch, class_names=self.class_names, num_classes=self.num_classes)
        if content["num_samples"] != self.num_samples:
            raise CheckpointError(
                f"checkpoint {path} was trained on {content['num_samples']:,} images, these are "
                f"{self.num_samples:,}: give its training data, or --resume none --overwrite to start afresh"
            )
        self._tell_changes(content, path, settings)
        self.model.load_state_dict(plain_names(content["model"]))
        self._load_optimizer(content["optimizer"], path)
        if content["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(content["scaler"])
        self._load_average(content["average"], path)
        if len(content["rng"]) == world.size:  # else the processes' shares of the work are others anyway
            set_rng_states(content["rng"][world.rank], world.device)
        self.meter.load_state_dict(content["meter"], world)
        self.schedule = ScheduleSpan.from_state(content["schedule"])
        self.epoch, self.loader, self.lr = content["epoch"], content["loader"], content["lr"]
        self.corrupt_samples = set(content["corrupt_samples"])
        self.train_seconds, self.run_seconds = content["train_seconds"], content["run_seconds"]
        self.best_top1, self.last_metrics = content["best_top1"], content["last_metrics"]

    def _tell_changes(self, content: dict[str, Any], path: Path, settings: dict[str, Any]) -> None:
        for name, value in settings.items():
            before = content["config"].get(name, value)
            if before != value and not name.startswith(_FREE_TO_CHANGE):
                warn(f"resuming with {name} = {value}; {path} was trained with {before}")
        if content["global_batch"] != self.global_batch:
            warn(
                f"resuming with a global batch of {self.global_batch}; {path} was trained with "
                f"{content['global_batch']}"
            )

    @property
    def evaluated_model(self) -> nn.Module:
        """The average of the weights once there is one, else the model itself."""
        return self.average.model if self.average and self.average.updates > 0 else self.model

    def _load_average(self, saved: dict[str, Any] | None, path: Path) -> None:
        """The checkpoint's average; where it has none, a new one that begins with its weights."""
        if self.average is None:
            return
        if saved is None:
            warn(f"{path} has no average of the weights: it begins now")
            self.average.model.load_state_dict(self.model.state_dict())
        else:
            self.average.load_state_dict(saved)

    def _load_optimizer(self, saved: dict[str, Any], path: Path) -> None:
        """The momenta of the checkpoint, with the settings of this run."""
        settings = [
            {name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups
        ]
        try:
            self.optimizer.load_state_dict(saved)
        except ValueError as error:
            raise CheckpointError(
                f"checkpoint {path} groups its parameters differently (training.decay_downsample_bn must be as it "
                f"was): {error}"
            ) from None
        for group, setting in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(setting)
        for parameter, memory in self.optimizer.state.items():
            for name, value in memory.items():
                is_like_it = isinstance(value, torch.Tensor) and value.shape == parameter.shape
                if is_like_it and value.stride() != parameter.stride():  # a fused step does not look at the layout
                    memory[name] = torch.empty_like(parameter).copy_(value)


def check_fits(
    content: dict[str, Any], path: Path, *, arch: str, class_names: list[str], num_classes: int | None = None
) -> None:
    """Raise CheckpointError where a checkpoint's architecture or classes are not the ones at hand."""
    if content["arch"] != arch:
        raise CheckpointError(
            f"checkpoint {path} holds a {content['arch']}, not a {arch}: give --arch {content['arch']}, "
            "or another --logging.folder (or --resume none --overwrite) to start afresh"
        )
    if num_classes is not None and content["num_classes"] != num_classes:
        raise CheckpointError(
            f"checkpoint {path} has {content['num_classes']} outputs, this model {num_classes}: "
            f"give --num-classes {content['num_classes']}"
        )
    check_same_classes(content["class_names"], class_names, path)


def check_same_classes(saved: list[str], class_names: list[str], path: Path | str) -> None:
    """Raise CheckpointError where the classes of a checkpoint and of a dataset are not the same."""
    if len(saved) != len(class_names):
        raise CheckpointError(f"checkpoint {path} knows {len(saved)} classes, the dataset has {len(class_names)}")
    if saved != class_names:
        wrong = next(i for i, names in enumerate(zip(saved, class_names, strict=True)) if names[0] != names[1])
        raise CheckpointError(
            f"checkpoint {path} calls class {wrong} '{saved[wrong]}', the dataset '{class_names[wrong]}': "
            "the labels do not mean the same"
        )
