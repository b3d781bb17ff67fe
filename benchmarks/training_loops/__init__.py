"""The training loops that benchmarks/training.py compares, one per file.

A loop is a context manager ``epochs(job)`` that returns a function, which trains one epoch of the job's batches and
returns an :class:`Epoch`. All start with the same weights and get the same images. Meters and progress bar are part of
a loop.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import nn

from rebar.loading import Batch
from rebar.loading.prefetch import IMAGENET_MEAN, IMAGENET_STD
from rebar.models.build import build_model
from rebar.training.options import Precision

NAMES = ("torchvision_reference", "ffcv_imagenet", "rebar")
NUM_CLASSES, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, LABEL_SMOOTHING = 1000, 0.01, 0.9, 1e-4, 0.1
_DISTINCT = 4


@dataclass(frozen=True)
class Job:
    """The workload of a loop."""

    arch: str
    resolution: int
    """Pixels."""
    batch_size: int
    steps: int
    """Steps per epoch."""
    precision: Precision
    """Resolved, not 'auto'."""
    device: torch.device
    train_dataset: str = ""
    """A .beton file, for the loop that reads one."""
    folder: str = ""
    """Folder for a loop's files."""
    batches: list[Batch] = field(default_factory=list, repr=False)
    """A few batches of random images, uint8 ``[n, height, width, 3]`` in main memory, used repeatedly."""

    def model(self) -> nn.Module:
        """Return the model on the CPU, with the same initial weights for every loop."""
        torch.manual_seed(0)
        return build_model(self.arch, num_classes=NUM_CLASSES)

    def epoch(self, batches: list[Batch]) -> list[Batch]:
        """Repeat the batches for one epoch."""
        return [batches[step % len(batches)] for step in range(self.steps)]

    def normalized(self) -> list[Batch]:
        """Return the batches as normalized float32 ``[n, 3, height, width]``, as from a DataLoader."""
        mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
        return [
            Batch(_pinned((b.images.permute(0, 3, 1, 2) - mean) / std, self.device), b.labels) for b in self.batches
        ]


@dataclass(frozen=True)
class Epoch:
    """The result of an epoch."""

    mean_loss: float
    images: int
    wait_seconds: float | None = None
    """Time spent waiting for batches; None if the loop does not measure it."""


Loop = Callable[[Job], AbstractContextManager[Callable[[], Epoch]]]


def random_batches(batch_size: int, resolution: int, device: torch.device) -> list[Batch]:
    """Return random images and labels, from a fixed seed; in pinned memory for a GPU."""
    draw = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(_DISTINCT):
        shape = (batch_size, resolution, resolution, 3)
        images = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
        labels = torch.randint(0, NUM_CLASSES, (batch_size,), generator=draw)
        batches.append(Batch(_pinned(images, device), _pinned(labels, device)))
    return batches


def _pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.pin_memory() if device.type == "cuda" else tensor
