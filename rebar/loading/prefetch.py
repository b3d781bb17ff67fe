"""Prefetching: threads that prepare batches in reused buffers, and copies to the device."""

import functools
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Result = TypeVar("Result")
GetResult = Callable[[], Result]
"""Waits for a started task and returns its result, or raises its exception."""
Submit = Callable[[ThreadPoolExecutor], GetResult[Result]]
"""Submits a task to a thread pool."""
SubmitBatch = Callable[..., GetResult[Any]]
"""Submits a batch: like :data:`Submit`, with the samples' :class:`RngKeys` as the keyword argument ``keys``."""


class Batch(NamedTuple):
    """``images`` uint8 ``[n, height, width, 3]`` RGB and ``labels`` int64 ``[n]``, in main memory."""

    images: torch.Tensor
    labels: torch.Tensor


class Lazy(Generic[Result]):
    """A value that is created by the first call of :meth:`get`. Thread-safe."""

    def __init__(self, create: Callable[[], Result]) -> None:
        self._create = create
        self._value: list[Result] = []
        self._lock = threading.Lock()

    def get(self) -> Result:
        """Return the value, the same object for every caller."""
        with self._lock:
            if not self._value:
                self._value.append(self._create())
            return self._value[0]


def split_slices(count: int, num_slices: int) -> list[slice]:
    """Split ``count`` items into up to ``num_slices`` slices of nearly equal length, none empty unless count is 0."""
    parts = max(1, min(count, num_slices))
    return [slice(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def prefetch(tasks: Iterable[Submit[Result]], *, num_threads: int, depth: int) -> Generator[Result, None, None]:
    """Yield the results of the tasks in order, with up to ``depth`` further tasks in progress.

    The next task starts when a result is yielded, so the number of batches in memory is bounded. A task's exception is
    raised in place of its result. The threads end when the generator ends or is closed.
    """
    with ThreadPoolExecutor(num_threads, thread_name_prefix="rebar-loader") as threads:
        started: deque[GetResult[Result]] = deque()
        try:
            for submit in tasks:
                started.append(submit(threads))
                if len(started) > depth:
                    yield started.popleft()()
            while started:
                yield started.popleft()()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


def submit_with_request(
    submit: Submit[Result], request: Callable[[int], None], number: int, threads: ThreadPoolExecutor
) -> GetResult[Result]:
    """Submit the read-ahead request of batch ``number``, then the task that makes the batch.

    With all arguments but the last bound, this is a Submit function.

    Exceptions of the request are ignored: it only makes reading faster, and reading reports errors of the disk.
    """
    threads.submit(request, number)
    return submit(threads)


class BufferPool:
    """Reuses batch buffers, which avoids a page fault per 4 KB of each batch.

    A buffer returns to the pool when the array from :meth:`take` and every view, tensor and storage of it have been
    garbage-collected, so batches that the consumer keeps are never overwritten.
    """

    def __init__(self, capacity: int) -> None:
        self._idle: deque[mmap.mmap] = deque(maxlen=capacity)  # appending and popping are atomic

    def __reduce__(self) -> tuple[Any, ...]:
        return BufferPool, (self._idle.maxlen,)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """Return an uninitialized uint8 array ``[nbytes]``."""
        # Private memory: a forked process must not write into the buffers of its parent.
        memory = self._take_idle(nbytes) or mmap.mmap(-1, max(nbytes, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # NumPy collapses chains of views: a view refers to the array that owns the memory. No array owns an mmap, so
        # every view refers to this one, which is finalized after the last of them.
        array = np.frombuffer(memory, np.uint8, nbytes)
        weakref.finalize(array, self._idle.append, memory).atexit = False
        return array

    def _take_idle(self, nbytes: int) -> mmap.mmap | None:
        """Return an idle buffer that is large enough, if any; release smaller ones, left by a lower resolution."""
        while True:
            try:
                memory = self._idle.pop()
            except IndexError:
                return None
            if len(memory) >= nbytes:
                return memory


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
