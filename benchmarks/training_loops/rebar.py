"""train_imagenet.py itself: its train_one_epoch, with its log, its progress bar and what may end it."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

import train_imagenet  # a script of the repository's root, which training.py made known
from rebar.config import parse_config
from rebar.loading import Batch
from rebar.loading.imagenet import build_train_loader
from rebar.reporting.run_folder import RunFolder
from rebar.training.config import TrainConfig
from rebar.training.distributed import World
from rebar.training.run import run_context
from rebar.training.setup import build_state
from training_loops import LABEL_SMOOTHING, LEARNING_RATE, MOMENTUM, NUM_CLASSES, WEIGHT_DECAY, Epoch, Job


@dataclasses.dataclass(frozen=True)
class SyntheticLoader:
    """Of a Loader what training asks of it; the batches are the job's."""

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
        """The same batches in every epoch."""
        return iter(self.job.epoch(self.job.batches))


def configuration(job: Job) -> TrainConfig:
    """The settings that the other loops have, Rebar's defaults otherwise."""
    knobs = {
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
    words = [f"--{name}={value}" for name, value in knobs.items() if value != ""]
    return parse_config(TrainConfig, words, description="benchmark")


@contextmanager
def epochs(job: Job) -> Iterator[Callable[[], Epoch]]:
    """See :mod:`training_loops`. Reads ``train_dataset`` where the job has one."""
    config, world = configuration(job), World(rank=0, size=1, device=job.device)
    loader = SyntheticLoader(job)
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
    with run_context(config, state, loader, RunFolder(Path(job.folder)), world, afresh=True) as (log, control):

        def one_epoch() -> Epoch:
            metrics = train_imagenet.train_one_epoch(config, state, state.model, loader, log, control, world)
            waited = state.meter.wait_seconds
            state.end_epoch()
            return Epoch(metrics["train/loss"], len(loader) * loader.global_batch, waited)

        yield one_epoch
