"""Mean and deviation of the channels, by which pictures are normalised.

`write_dataset.py --stats` measures them on a .beton (:mod:`rebar.beton.stats`). A file holds `mean` and `std`, three
numbers each, of values from 0 to 1 or from 0 to 255.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebar.errors import RebarError
from rebar.loading.device import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class ChannelStatistics:
    """Of red, green and blue, as shares of 255."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def read_statistics(path: Path | str | None) -> ChannelStatistics:
    """The statistics in a file; ImageNet's where none is named. Raises RebarError for a file that has none."""
    if not path:
        return ChannelStatistics()
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RebarError(f"data.stats_file {path} cannot be read: {error}") from None
    mean, std = (_three_numbers(content, name, path) for name in ("mean", "std"))
    if max(*mean, *std) > 1:  # of values up to 255
        mean, std = (tuple(value / 255 for value in values) for values in (mean, std))
    if min(mean) < 0 or max(mean) > 1 or min(std) <= 0:
        raise RebarError(f"data.stats_file {path}: means must lie between 0 and 1 (or 255), deviations above 0")
    return ChannelStatistics(mean, std)


def _three_numbers(content: Any, name: str, path: Path | str) -> tuple[float, ...]:
    values = content.get(name) if isinstance(content, dict) else None
    if not isinstance(values, list) or len(values) != 3 or not all(_is_number(value) for value in values):
        raise RebarError(f"data.stats_file {path}: '{name}' must be a list of three numbers, for red, green and blue")
    return tuple(float(value) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
