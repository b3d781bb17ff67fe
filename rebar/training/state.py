"""Everything of a run that changes while it trains: what a checkpoint must hold."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rebar.cli import warn
from rebar.loading.device import IMAGENET_MEAN, IMAGENET_STD
from rebar.training.averaging import WeightAverage
from rebar.training.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from rebar.training.precision import Precision

# Settings that say where and how to run, not what is trained.
_FREE_TO_CHANGE = ("data.", "logging.", "checkpoint.", "validation.", "dist.", "execution.", "training.eval_only")


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
    average: WeightAverage | None = None
    """Of the weights, evaluated in their place."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Of the channels, by which pictures are normalised; with ``std``."""
    std: tuple[float, ...] = IMAGENET_STD
    epoch: int = 0
    """Complete epochs."""
    train_seconds: float = 0.0
    last_metrics: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path, settings: dict[str, Any]) -> None:
        """Write a checkpoint; ``settings`` is the flat configuration. Raises CheckpointError."""
        content = {
            "arch": self.arch,
            "num_classes": self.num_classes,
            "class_names": self.class_names,
            "epoch": self.epoch,
            "train_seconds": self.train_seconds,
            "last_metrics": self.last_metrics,
            "config": settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "mean": list(self.mean),
            "std": list(self.std),
            "torch_rng": torch.get_rng_state(),
        }
        save_checkpoint(path, content)

    def load(self, path: Path, settings: dict[str, Any]) -> None:
        """Go on from a checkpoint. Raises CheckpointError where it is of another model or dataset."""
        content = read_checkpoint(path)
        check_fits(content, path, arch=self.arch, class_names=self.class_names, num_classes=self.num_classes)
        for name, value in settings.items():
            before = content["config"].get(name)
            if before != value and not name.startswith(_FREE_TO_CHANGE):
                warn(f"resuming with {name} = {value}; {path} was trained with {before}")
        self.model.load_state_dict(content["model"])
        self._load_optimizer(content["optimizer"], path)
        if content["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(content["scaler"])
        self._load_average(content.get("average"), path)
        torch.set_rng_state(content["torch_rng"])
        self.epoch = content["epoch"]
        self.train_seconds = content["train_seconds"]
        self.last_metrics = content["last_metrics"]

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
    saved = content["class_names"]
    if len(saved) != len(class_names):
        raise CheckpointError(f"checkpoint {path} knows {len(saved)} classes, the dataset has {len(class_names)}")
    if saved != class_names:
        wrong = next(i for i, names in enumerate(zip(saved, class_names, strict=True)) if names[0] != names[1])
        raise CheckpointError(
            f"checkpoint {path} calls class {wrong} '{saved[wrong]}', the dataset '{class_names[wrong]}': "
            "the labels do not mean the same"
        )
