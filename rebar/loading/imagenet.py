"""The two loaders of the ImageNet recipe, and the settings they share."""

import os
from dataclasses import dataclass

from rebar.config import knob
from rebar.loading.crops import CenterCrop, RandomResizedCrop
from rebar.loading.loader import Loader


@dataclass(frozen=True)
class DataConfig:
    """Data."""

    train_dataset: str = knob("", help="training .beton; default $WRITE_DIR/train.beton")
    val_dataset: str = knob("", help="validation .beton; default $WRITE_DIR/val.beton")
    num_workers: int = knob(0, help="decoding threads per process; 0: the cores divided by the processes", minimum=0)
    in_memory: bool = knob(True, help="the files fit in memory; if not, coming pictures are read ahead")
    min_scale: float = knob(0.08, help="smallest share of the area a random crop takes", minimum=0.001, maximum=1)


def threads_per_process(requested: int, local_world_size: int) -> int:
    """Decoding threads: as asked, or this machine's usable cores divided by its processes."""
    return requested or max(1, len(os.sched_getaffinity(0)) // local_world_size)


def build_train_loader(
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    rank: int,
    world_size: int,
    local_world_size: int,
    pin_memory: bool,
) -> Loader:
    """Shuffled, randomly cropped and mirrored; an incomplete last batch is dropped."""
    return Loader(
        config.train_dataset,
        batch_size,
        RandomResizedCrop(scale=(config.min_scale, 1.0)),
        num_workers=threads_per_process(config.num_workers, local_world_size),
        shuffle=True,
        drop_last=True,
        seed=seed,
        rank=rank,
        world_size=world_size,
        read_ahead=not config.in_memory,
        pin_memory=pin_memory,
    )


def build_val_loader(
    config: DataConfig,
    *,
    batch_size: int,
    crop_ratio: float,
    rank: int,
    world_size: int,
    local_world_size: int,
    pin_memory: bool,
) -> Loader:
    """In file order, centre-cropped; every sample exactly once over all processes."""
    return Loader(
        config.val_dataset,
        batch_size,
        CenterCrop(crop_ratio),
        num_workers=threads_per_process(config.num_workers, local_world_size),
        shuffle=False,
        drop_last=False,
        rank=rank,
        world_size=world_size,
        read_ahead=not config.in_memory,
        pin_memory=pin_memory,
    )
