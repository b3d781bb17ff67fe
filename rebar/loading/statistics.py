"""Mean and deviation of the channels, by which pictures are normalised.

    python -m rebar.loading.statistics train.beton stats.json

measures them on a .beton; `--stats-file stats.json` uses them. A file holds `mean` and `std`, three numbers
each, of values from 0 to 1 or from 0 to 255; a .beton's sidecar that has the two will do.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rebar.errors import RebarError
from rebar.loading.crops import CenterCrop
from rebar.loading.device import IMAGENET_MEAN, IMAGENET_STD
from rebar.loading.loader import Loader
from rebar.loading.order import OrderOption
from rebar.replacing import replacing


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


def measure_statistics(beton: Path | str, *, samples: int = 20_000, resolution: int = 128) -> ChannelStatistics:
    """Over the central squares of ``samples`` pictures chosen by chance, every pixel counting alike."""
    loader = Loader(
        beton, 100, order=OrderOption.RANDOM, drop_last=False, cropper=CenterCrop(1.0), resolution=resolution
    )
    sums, squares, pixels = np.zeros(3), np.zeros(3), 0
    for taken, batch in enumerate(loader):
        values = batch.images.numpy().reshape(-1, 3).astype(np.float64) / 255
        sums, squares, pixels = sums + values.sum(0), squares + (values**2).sum(0), pixels + len(values)
        if (taken + 1) * 100 >= samples:
            break
    mean = sums / pixels
    return ChannelStatistics(tuple(mean.tolist()), tuple(np.sqrt(squares / pixels - mean**2).tolist()))


def main(argv: Sequence[str]) -> None:
    """Measure a .beton's statistics and write them."""
    if len(argv) != 2 or argv[0].startswith("-"):
        raise RebarError("usage: python -m rebar.loading.statistics FILE.beton STATS.json")
    found = measure_statistics(argv[0])
    text = json.dumps({"mean": [round(m, 6) for m in found.mean], "std": [round(s, 6) for s in found.std]})
    with replacing(Path(argv[1])) as (file,):
        file.write(text.encode() + b"\n")
    print(f"{argv[1]}: {text}")


if __name__ == "__main__":
    from rebar.cli import run_command

    run_command(main)
