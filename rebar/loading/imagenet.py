"""The training and validation loaders of the ImageNet recipe, and their configuration."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rebar.beton.reader import open_betons
from rebar.beton.selection import balanced_subset
from rebar.config import option
from rebar.loading.crops import CenterCrop, RandomResizedCrop
from rebar.loading.decode import OnError
from rebar.loading.loader import Loader
from rebar.loading.order import OrderOption
from rebar.sources.dataset_cache import resolve_beton
from rebar.sources.layout import Split


@dataclass(frozen=True)
class DataConfig:
    """Data."""

    train_dataset: str = option(
        "", help="training .beton, or a source (folder, tar, hf:NAME, s3://...); default $WRITE_DIR/train.beton"
    )
    val_dataset: str = option("", help="validation .beton, or a source; default $WRITE_DIR/val.beton")
    use_hf: bool = option(False, help="use hf:imagenet-1k if no dataset is given")
    data_subset: str = option(
        "full",
        help="class-balanced subset: tiny (1,000 images), small (10,000), medium (100,000), large (500,000), full, or "
        "a number of images",
    )
    num_workers: int = option(0, help="decoding threads per rank; 0: usable cores / ranks on the node", minimum=0)
    in_memory: bool = option(
        True, help="the betons fit in memory; if not, shuffle in windows of 512 MB (QUASI_RANDOM) and read ahead"
    )
    min_scale: float = option(
        0.08, help="smallest area of a random crop, as a fraction of the image", minimum=0.001, maximum=1
    )
    stats_file: str = option("", help="JSON file with mean and std of the channels; default ImageNet's")
    on_error: OnError = option("raise", help="corrupt training image: raise an error, or replace it with another image")


IMAGENET_ON_HUB = "hf:imagenet-1k"


def build_train_loader(
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    distributed: bool,
    pin_memory: bool,
    random_crops: bool = True,
    copies: int = 1,
) -> Loader:
    """Return the training loader: shuffled, random resized crops with flips (or center crops), last batch dropped."""
    path, indices = _resolve(config.train_dataset, "train", config.data_subset)
    return Loader(
        path,
        batch_size,
        config.num_workers,
        os_cache=config.in_memory,
        order=OrderOption.RANDOM if config.in_memory else OrderOption.QUASI_RANDOM,
        seed=seed,
        indices=indices,
        drop_last=True,
        copies=copies,
        cropper=RandomResizedCrop(scale=(config.min_scale, 1.0)) if random_crops else CenterCrop(),
        distributed=distributed,
        on_error=config.on_error,
        pin_memory=pin_memory,
    )


def build_val_loader(
    config: DataConfig,
    *,
    batch_size: int,
    crop_ratio: float,
    distributed: bool,
    pin_memory: bool,
) -> Loader:
    """Return the validation loader: file order, center crops, each sample exactly once; a corrupt image is an error."""
    path, indices = _resolve(config.val_dataset, "val", config.data_subset)
    return Loader(
        path,
        batch_size,
        config.num_workers,
        os_cache=config.in_memory,
        order=OrderOption.SEQUENTIAL,
        indices=indices,
        drop_last=False,
        cropper=CenterCrop(crop_ratio),
        distributed=distributed,
        pin_memory=pin_memory,
    )


def _resolve(dataset: str, split: Split, subset: str) -> tuple[Path, NDArray[np.int64] | None]:
    """Return the beton, written to the cache first if ``dataset`` is a source, and the samples to use (None: all)."""
    path = resolve_beton(dataset, split, subset=subset)
    if subset == "full":
        return path, None
    labels = open_betons(path).labels
    if subset.isdigit() and int(subset) >= len(labels):
        return path, None
    return path, balanced_subset(labels, subset, seed=0)
