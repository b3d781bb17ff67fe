"""train_imagenet.py itself: its train_one_epoch, with log, progress bar and stop votes."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import train_imagenet  # a script in the repository's root, which training.py put on sys.path
from rebar.config import parse_config
from rebar.loading import Batch
from rebar.loading.imagenet import build_train_loader
from rebar.reporting.run_folder import RunFolder
from rebar.training.build import build_state
from rebar.training.config import TrainConfig
from rebar.training.distributed import World
from rebar.training.launch import run_context
from rebar.training.run import Run
from training_loops import LABEL_SMOOTHING, LEARNING_RATE, MOMENTUM, NUM_CLASSES, WEIGHT_DECAY, Epoch, Job


@dataclasses.dataclass(frozen=True)
class SyntheticLoader:
    """The attributes of a Loader that training needs, with the job's batches."""

    job: Job
    corrupt_samples: frozenset[int] = frozenset()

    @property
    def beton(self) -> SimpleNamespace:
        return SimpleNamespace(num_classes=NUM_CLASSES, class_names=None, path="synthetic images")

    @property
    def global_batch(self) -> int:
        return self.job.batch_size

    @property
    def num_samples(self) -> int:
        return self.job.batch_size * self.job.steps

    def __len__(self) -> int:
        return self.job.steps

    def epoch(self, epoch: int, resolution: int) -> Iterator[Batch]:
        """Return the same batches in every epoch."""
        return iter(self.job.epoch(self.job.batches))


def configuration(job: Job) -> TrainConfig:
    """Return the settings of the other loops, and Rebar's defaults otherwise."""
    options = {
        "model.arch": job.arch,
        "model.num_classes": NUM_CLASSES,
        "resolution.min_res": job.resolution,
        "resolution.max_res": job.resolution,
        "lr.lr": LEARNING_RATE,
        "lr.lr_schedule_type": "constant",
        "training.batch_size": job.batch_size,
        "training.epochs": 1000,
        "training.momentum": MOMENTUM,
        "training.weight_decay": WEIGHT_DECAY,
        "training.label_smoothing": LABEL_SMOOTHING,
        "training.precision": job.precision,
        "data.train_dataset": job.train_dataset,
        "data.data_subset": job.batch_size * job.steps if job.train_dataset else "full",
        "logging.folder": job.folder,
    }
    args = [f"--{name}={value}" for name, value in options.items() if value != ""]
    return parse_config(TrainConfig, args, description="benchmark")


@contextmanager
def epochs(job: Job) -> Iterator[Callable[[], Epoch]]:
    """See :mod:`training_loops`. Reads ``train_dataset`` if the job has one."""
    config, world = configuration(job), World(rank=0, size=1, device=job.device)
    loader: Any = SyntheticLoader(job)
    if job.train_dataset:
        loader = build_train_loader(
            config.data,
            batch_size=job.batch_size,
            seed=0,
            distributed=False,
            pin_memory=job.device.type == "cuda",
        )
    torch.manual_seed(0)
    state = build_state(config, loader, world)
    run = Run(config, world, RunFolder(Path(job.folder)), state, state.model, loader, loader)
    with run_context(run):

        def one_epoch() -> Epoch:
            metrics = train_imagenet.train_one_epoch(run)
            waited = state.meter.wait_seconds
            state.end_epoch()
            return Epoch(metrics["train/loss"], len(loader) * loader.global_batch, waited)

        yield one_epoch
