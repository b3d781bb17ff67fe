"""Short training runs on random images, for tests that compare devices."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

import train_imagenet
from rebar.config import parse_config
from rebar.loading.batches import Batch
from rebar.reporting.run_folder import RunFolder
from rebar.training.config import TrainConfig
from rebar.training.distributed import World
from rebar.training.run import Run
from rebar.training.setup import build_state
from rebar.training.state import TrainState

NUM_CLASSES, BATCH_SIZE, LEARNING_RATE = 10, 16, 0.02


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
        words = [f"--model.arch={arch}", "--training.epochs=2", "--training.precision=32", "--execution.tf32=0"]
        self.config = parse_config(TrainConfig, [*words, *options], description="test")
        self.world = World(rank=0, size=1, device=torch.device(device))
        torch.manual_seed(0)
        loader = LoaderStub()
        self.state: TrainState = build_state(self.config, loader, self.world)  # type: ignore[arg-type]
        folder = RunFolder(Path("unused"))
        self.run = Run(self.config, self.world, folder, self.state, self.state.model, loader, loader)  # type: ignore[arg-type]
        self.normalizer = self.run.normalizer()

    def use(self, model: nn.Module) -> None:
        """Train through ``model``, for example a compiled one, from now on."""
        self.run.model = model

    def steps(self, batches: Iterable[Batch], first_step: int = 0) -> Iterator[torch.Tensor]:
        """Train on batches; yields the losses, on the device."""
        return train_imagenet.train_steps(self.run, batches, lambda step: LEARNING_RATE, first_step)

    def step(self, number: int, resolution: int = 32, size: int = BATCH_SIZE) -> torch.Tensor:
        """Train on batch ``number``; returns the loss, on the device."""
        (loss,) = self.steps([random_batch(number, resolution, size)], number)
        return loss

    def losses(self, count: int) -> list[float]:
        """Train on ``count`` batches."""
        return torch.stack([self.step(number) for number in range(count)]).tolist()


def weights_of(model: nn.Module) -> torch.Tensor:
    """Return all weights and floating-point buffers as one float64 vector on the CPU."""
    values: Sequence[torch.Tensor] = [value for value in model.state_dict().values() if value.is_floating_point()]
    return torch.cat([value.detach().cpu().double().flatten() for value in values])
