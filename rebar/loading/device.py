"""From uint8 pictures in main memory to normalised tensors on the device, one batch ahead of the consumer."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from rebar.loading.plan import Batch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Augment = Callable[[torch.Tensor, int], torch.Tensor]
HostBatch = TypeVar("HostBatch")
DeviceBatch = TypeVar("DeviceBatch", bound=tuple[torch.Tensor, ...])


class Normalizer:
    """Moves batches to ``device`` as bytes (a quarter of the traffic of floats) and normalises them there.

    ``augment`` is given the pictures before they are normalised, uint8 ``[n, 3, h, w]`` on the device, and
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
