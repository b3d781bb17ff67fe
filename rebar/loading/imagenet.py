"""The training and validation loaders of the ImageNet recipe.

Channel statistics other than ImageNet's come from a JSON file that ``write_dataset.py --stats`` writes.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebar.beton.reader import open_betons
from rebar.beton.selection import balanced_subset
from rebar.errors import RebarError
from rebar.loading.crops import CenterCrop, RandomResizedCrop
from rebar.loading.loader import Loader
from rebar.loading.options import DataConfig
from rebar.loading.order import OrderOption
from rebar.loading.prefetch import IMAGENET_MEAN, IMAGENET_STD
from rebar.sources.dataset_cache import resolve_beton
from rebar.sources.layout import Split
from rebar.storage.files import cache_folder

_OS_CACHE = {"auto": None, "true": True, "false": False}


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
    path, indices = _resolve(config.train_dataset, "train", config)
    return Loader(
        path,
        batch_size,
        config.num_workers,
        os_cache=_OS_CACHE[config.in_memory],
        # Not a function of the memory that is available: the order must be the same on every machine.
        order=OrderOption.QUASI_RANDOM if config.in_memory == "false" else OrderOption.RANDOM,
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
    path, indices = _resolve(config.val_dataset, "val", config)
    return Loader(
        path,
        batch_size,
        config.num_workers,
        os_cache=_OS_CACHE[config.in_memory],
        order=OrderOption.SEQUENTIAL,
        indices=indices,
        drop_last=False,
        cropper=CenterCrop(crop_ratio),
        distributed=distributed,
        pin_memory=pin_memory,
    )


def _resolve(dataset: str, split: Split, config: DataConfig) -> tuple[Path, NDArray[np.int64] | None]:
    """Return the beton, written to the cache first if ``dataset`` is a source, and the samples to use (None: all)."""
    subset = config.data_subset
    classes, per_class = config.max_classes, config.max_samples_per_class
    path = resolve_beton(
        dataset,
        split,
        subset=subset,
        max_classes=classes,
        max_samples_per_class=per_class,
        image_key=config.image_key,
    )
    if (classes or per_class) and not path.is_relative_to(cache_folder()):
        raise RebarError(
            f"data.max_classes, data.max_samples_per_class: {path} is a beton, and they select images when one is "
            "written. Use the images that it was written from, or write another with the same options.",
            code="config-conflict",
        )
    if subset == "full":
        return path, None
    labels = open_betons(path).labels
    if subset.isdigit() and int(subset) >= len(labels):
        return path, None
    return path, balanced_subset(labels, subset, seed=0)


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of the red, green and blue channels, for pixel values scaled to [0, 1]."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def read_statistics(path: Path | str | None) -> ChannelStatistics:
    """Return the statistics in a JSON file, for pixel values of 0 to 1 or 0 to 255; ImageNet's if ``path`` is empty.

    Raises RebarError if the file cannot be read or its values are invalid.
    """
    if not path:
        return ChannelStatistics()
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _invalid_statistics(path, f"cannot be read: {error}") from None
    mean, std = (_three_numbers(content, name, path) for name in ("mean", "std"))
    if max(*mean, *std) > 1:  # statistics of pixel values from 0 to 255
        mean, std = (tuple(value / 255 for value in values) for values in (mean, std))
    if min(mean) < 0 or max(mean) > 1 or min(std) <= 0:
        raise _invalid_statistics(path, "'mean' must be between 0 and 1 (or 255), and 'std' above 0")
    return ChannelStatistics(mean, std)


def _three_numbers(content: Any, name: str, path: Path | str) -> tuple[float, ...]:
    values = content.get(name) if isinstance(content, dict) else None
    if not isinstance(values, list) or len(values) != 3 or not all(_is_number(value) for value in values):
        raise _invalid_statistics(path, f"'{name}' must be a list of three numbers, for red, green and blue")
    return tuple(float(value) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _invalid_statistics(path: Path | str, problem: str) -> RebarError:
    return RebarError(
        f"data.stats_file {path}: {problem}. Measure the statistics with write_dataset.py --stats BETON.",
        code="stats-file-invalid",
    )
