"""Move uint8 batches to the device and normalize them there; on a GPU, one batch ahead of the consumer.

Channel statistics other than ImageNet's come from a JSON file that ``write_dataset.py --stats`` writes.
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
from rebar.loading.batches import Batch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Augment = Callable[[torch.Tensor, int], torch.Tensor]
"""Augments uint8 ``[n, 3, h, w]`` images on the device; the second argument is the step."""
HostBatch = TypeVar("HostBatch")
DeviceBatch = TypeVar("DeviceBatch", bound=tuple[torch.Tensor, ...])


class Normalizer:
    """Copies batches to ``device`` as uint8, a quarter of the size of float32, and normalizes them there.

    ``augment(images, step)`` is applied on the device before normalization, to uint8 ``[n, 3, h, w]``.
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
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._augment = augment
        self._scale = self._per_channel([1 / (255 * deviation) for deviation in std])
        self._shift = self._per_channel([-m / deviation for m, deviation in zip(mean, std, strict=True)])

    def _per_channel(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device).view(1, 3, 1, 1)

    def __call__(self, batch: Batch, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images of ``dtype`` ``[n, 3, h, w]`` and int64 labels ``[n]``; ``step`` is passed to ``augment``."""
        images = batch.images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        labels = batch.labels.to(self.device, non_blocking=True)
        if self._augment is not None:
            images = self._augment(images, step)
        # Compute in float32 and round once: float16 is not precise enough for the subtraction.
        normalized = torch.addcmul(self._shift, images.to(torch.float32), self._scale)
        return normalized.to(self.dtype).contiguous(memory_format=self._memory_format), labels

    def each(self, batches: Iterable[Batch], first_step: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Normalize each batch; on a GPU, one batch ahead of the consumer. Steps count from ``first_step``."""
        return on_device(enumerate(batches, first_step), lambda numbered: self(numbered[1], numbered[0]), self.device)


def on_device(
    batches: Iterable[HostBatch], move: Callable[[HostBatch], DeviceBatch], device: torch.device | None
) -> Iterator[DeviceBatch]:
    """Apply ``move`` to each batch; for a GPU, on a side stream, one batch ahead of the consumer.

    The consumer's current stream waits for the copy, so the consumer needs no synchronization of its own.
    """
    if device is None or device.type != "cuda":
        return map(move, batches)
    return _on_side_stream(batches, move, device)


def _on_side_stream(
    batches: Iterable[HostBatch], move: Callable[[HostBatch], DeviceBatch], device: torch.device
) -> Iterator[DeviceBatch]:
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # the tensors that ``move`` uses were created there
    started: deque[Callable[[], DeviceBatch]] = deque()
    for batch in batches:
        # The host batch may be released immediately: torch keeps pinned memory until its copies are complete, and
        # copies from pageable memory return only after reading it.
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
    """Make the current stream wait for ``done``, and record the stream on the GPU tensors."""
    for value in values:
        if isinstance(value, torch.Tensor) and value.is_cuda:
            current = torch.cuda.current_stream(value.device)
            current.wait_event(done)
            value.record_stream(current)


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
