"""Short training runs on random images, for tests of the training step."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import train_imagenet
from rebar.config import parse_config
from rebar.loading import Batch
from rebar.reporting.run_folder import RunFolder
from rebar.training.build import build_state
from rebar.training.config import TrainConfig
from rebar.training.distributed import World
from rebar.training.run import Run
from rebar.training.state import TrainState

NUM_CLASSES, BATCH_SIZE, LEARNING_RATE = 10, 16, 0.02


RECIPES = {
    "sgd": [],
    "blurpool": ["--training.use_blurpool=1"],
    "mixup": ["--regularization.use_mixup=1"],
    "cutmix": ["--regularization.use_cutmix=1"],
    "erasing": ["--regularization.random_erasing=0.5"],
    "nesterov_clipped": ["--optimizer.nesterov=1", "--optimizer.clip_norm=0.5"],
    "sgdw": ["--training.optimizer=sgdw"],
    "lamb": ["--training.optimizer=lamb"],
    "lars": ["--training.optimizer=lars"],
    "sam": ["--optimizer.sam_rho=0.05", "--optimizer.sam_every=2"],
    "ema": ["--averaging.use_ema=1", "--averaging.ema_update_every=1", "--averaging.ema_half_life=2"],
    "swa": ["--averaging.use_swa=1", "--averaging.swa_start=0"],
    "accumulate": ["--execution.accumulate=2"],
    "gradient_checkpointing": ["--execution.gradient_checkpointing=1"],
    "bce": ["--loss.loss_type=bce"],
    "contiguous": ["--execution.channels_last=0"],
}
"""Options by technique. Results do not depend on the device."""
ALL_RECIPES = RECIPES | {
    "strong": ["--regularization.augmentation=strong"],
    "randaugment": ["--regularization.use_randaugment=1"],
    "color_jitter": ["--regularization.color_jitter=0.4", "--regularization.color_jitter_hue=0.1"],
    "stochastic_depth": ["--regularization.stochastic_depth=0.2"],
    "fp16": ["--training.precision=fp16"],
    "fp16_clipped": ["--training.precision=fp16", "--optimizer.clip_norm=1"],
    "bf16": ["--training.precision=bf16"],
}
"""Includes techniques whose results depend on the device."""


@dataclasses.dataclass(frozen=True)
class LoaderStub:
    """The attributes of a Loader that build_state reads."""

    steps: int = 4
    global_batch: int = BATCH_SIZE
    corrupt_samples: frozenset[int] = frozenset()

    @property
    def beton(self) -> SimpleNamespace:
        return SimpleNamespace(num_classes=NUM_CLASSES, class_names=None, path="random images")

    @property
    def num_samples(self) -> int:
        return self.steps * self.global_batch

    def __len__(self) -> int:
        return self.steps


def random_batch(number: int, resolution: int = 32, size: int = BATCH_SIZE) -> Batch:
    """Return uint8 images ``[size, resolution, resolution, 3]`` in host memory and their labels, the same each time."""
    draw = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (size, resolution, resolution, 3), generator=draw, dtype=torch.uint8)
    labels = torch.randint(0, NUM_CLASSES, (size,), generator=draw)
    return Batch(images.pin_memory(), labels.pin_memory()) if torch.cuda.is_available() else Batch(images, labels)


class Training:
    """A model, its optimizer and the step of train_imagenet.py, on one device."""

    def __init__(self, device: str, *options: str, arch: str = "resnet20") -> None:
        args = [f"--model.arch={arch}", "--training.epochs=2", "--training.precision=32", "--execution.tf32=0"]
        self.config = parse_config(TrainConfig, [*args, *options], description="test")
        self.world = World(rank=0, size=1, device=torch.device(device))
        torch.manual_seed(0)
        loader: Any = LoaderStub()
        self.state: TrainState = build_state(self.config, loader, self.world)
        self.run = Run(self.config, self.world, RunFolder(Path("unused")), self.state, self.state.model, loader, loader)

    def steps(self, batches: Iterable[Batch], first_step: int = 0) -> Iterator[torch.Tensor]:
        """Train on batches; yield their losses, on the device."""
        return train_imagenet.train_steps(self.run, batches, lambda step: LEARNING_RATE, first_step)

    def step(self, number: int, resolution: int = 32, size: int = BATCH_SIZE) -> torch.Tensor:
        """Train on batch ``number``; return the loss, on the device."""
        (loss,) = self.steps([random_batch(number, resolution, size)], first_step=number)
        return loss

    def losses(self, count: int) -> list[float]:
        """Train on ``count`` batches and return their losses."""
        return torch.stack([self.step(number) for number in range(count)]).tolist()


def weights_of(model: nn.Module) -> torch.Tensor:
    """Return all weights and floating-point buffers as one float64 vector on the CPU."""
    values: Sequence[torch.Tensor] = [value for value in model.state_dict().values() if value.is_floating_point()]
    return torch.cat([value.detach().cpu().double().flatten() for value in values])
