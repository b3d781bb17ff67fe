"""From uint8 images in main memory to normalised tensors on the device, one batch ahead of the consumer.

Mean and deviation of the channels, by which images are normalised.

`write_dataset.py --stats` measures them on a .beton (:mod:`rebar.beton.verify`). A file holds `mean` and `std`, three
numbers each, of values from 0 to 1 or from 0 to 255.
"""

import functools
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from rebar.errors import RebarError
from rebar.loading.batch_source import Batch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Augment = Callable[[torch.Tensor, int], torch.Tensor]
HostBatch = TypeVar("HostBatch")
DeviceBatch = TypeVar("DeviceBatch", bound=tuple[torch.Tensor, ...])


class Normalizer:
    """Moves batches to ``device`` as bytes (a quarter of the traffic of floats) and normalises them there.

    ``augment`` is given the images before they are normalised, uint8 ``[n, 3, h, w]`` on the device, and
    the step's number, and returns what takes their place.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        channels_last: bool = True,
        augment: Augment | None = None,
    ) -> None:
        self.device = device
        self.dtype = dtype
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._augment = augment
        self._scale = self._per_channel([1 / (255 * deviation) for deviation in std])
        self._shift = self._per_channel([-m / deviation for m, deviation in zip(mean, std, strict=True)])

    def _per_channel(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device).view(1, 3, 1, 1)

    def __call__(self, batch: Batch, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """``dtype`` ``[n, 3, h, w]`` and int64 ``[n]`` labels; ``step`` is for the augmentation."""
        images = batch.images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        labels = batch.labels.to(self.device, non_blocking=True)
        if self._augment is not None:
            images = self._augment(images, step)
        # Computed as float32, whatever it is stored as: half has too few digits for what is subtracted.
        exact = torch.addcmul(self._shift, images.to(torch.float32), self._scale)
        return exact.to(self.dtype).contiguous(memory_format=self._layout), labels

    def each(self, batches: Iterable[Batch], first_step: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Normalise batch after batch, counted from ``first_step``; on a GPU one batch ahead of the consumer."""
        return on_device(enumerate(batches, first_step), lambda numbered: self(numbered[1], numbered[0]), self.device)


def on_device(
    batches: Iterable[HostBatch], move: Callable[[HostBatch], DeviceBatch], device: torch.device | None
) -> Iterator[DeviceBatch]:
    """``move`` every batch; to a GPU on a stream of its own, one batch ahead of the consumer.

    The consumer may use what it gets on its current stream at once, and for as long as it likes.
    """
    if device is None or device.type != "cuda":
        return map(move, batches)
    return _ahead_on_stream(batches, move, device)


def _ahead_on_stream(
    batches: Iterable[HostBatch], move: Callable[[HostBatch], DeviceBatch], device: torch.device
) -> Iterator[DeviceBatch]:
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # whatever ``move`` refers to was made there
    started: deque[Callable[[], DeviceBatch]] = deque()
    for batch in batches:
        # The batch may be let go at once: torch keeps pinned memory until its copies are over, and a copy
        # from other memory has read it when it returns.
        with torch.cuda.stream(stream):
            moved = move(batch)
        started.append(functools.partial(_hand_over, moved, stream.record_event()))
        if len(started) > 1:
            yield started.popleft()()
    while started:
        yield started.popleft()()


def _hand_over(moved: DeviceBatch, done: torch.cuda.Event) -> DeviceBatch:
    wait_on_current_stream(moved, done)
    return moved


def wait_on_current_stream(values: Iterable[object], done: torch.cuda.Event) -> None:
    """Let the consumer's stream wait for ``done``, and the memory of what lies on a GPU for the consumer's stream."""
    for value in values:
        if isinstance(value, torch.Tensor) and value.is_cuda:
            current = torch.cuda.current_stream(value.device)
            current.wait_event(done)
            value.record_stream(current)


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
