"""Prefetching: a thread pool that prepares batches, a pool of batch buffers, and read-ahead from disk."""

import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Result = TypeVar("Result")
Wait = Callable[[], Result]
"""Waits for a started task and returns its result, or raises its exception."""
Start = Callable[[ThreadPoolExecutor], Wait[Result]]
"""Submits a task to a thread pool."""
StartBatch = Callable[..., Wait[Any]]
"""Like :data:`Start`, with the keyword argument ``keys``: the :class:`RngKeys` of the batch's samples."""


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


def prefetch(tasks: Iterable[Start[Result]], *, num_threads: int, depth: int) -> Generator[Result, None, None]:
    """Yield the results of the tasks in order, with up to ``depth`` further tasks in progress.

    The next task starts when a result is yielded, so the number of batches in memory is bounded. A task's exception is
    raised in place of its result. The threads end when the generator ends or is closed.
    """
    with ThreadPoolExecutor(num_threads, thread_name_prefix="rebar-loader") as threads:
        started: deque[Wait[Result]] = deque()
        try:
            for start in tasks:
                started.append(start(threads))
                if len(started) > depth:
                    yield started.popleft()()
            while started:
                yield started.popleft()()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


class BufferPool:
    """Reuses batch buffers, which avoids a page fault per 4 KB of each batch.

    A buffer returns to the pool when the array from :meth:`take` and every view, tensor and storage of it have been
    garbage-collected, so batches that the consumer keeps are never overwritten.
    """

    def __init__(self, capacity: int) -> None:
        self._idle: deque[mmap.mmap] = deque(maxlen=capacity)  # appending and popping are atomic

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """Return an uninitialized uint8 array ``[nbytes]``."""
        memory = self._take_idle(nbytes) or mmap.mmap(-1, max(nbytes, 1))
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


READ_AHEAD_BATCHES = 8
"""Number of batches by which read-ahead precedes decoding."""
_MERGE_GAP = 256 << 10
"""Regions closer than this (bytes) are read as one, since reading the gap is faster than a seek."""


class Regions(NamedTuple):
    """Byte ranges in files: file number (int64), offset and size in bytes (uint64), each ``[n]``."""

    files: NDArray[np.int64]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]


class ReadAhead:
    """Requests byte ranges of files into the page cache with ``posix_fadvise``. Keeps the files open."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._descriptors = []
        for path in paths:
            self._descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            weakref.finalize(self, os.close, self._descriptors[-1])

    def request(
        self, number: int, batches: Sequence[NDArray[np.int64]], regions: Callable[[NDArray[np.int64]], Regions]
    ) -> None:
        """Request batch ``number + READ_AHEAD_BATCHES``; at batch 0, also all batches before it."""
        last = number + READ_AHEAD_BATCHES
        for batch in batches[0 if number == 0 else last : last + 1]:
            for file, start, end in merge_regions(regions(batch)):
                os.posix_fadvise(self._descriptors[file], start, end - start, os.POSIX_FADV_WILLNEED)


def merge_regions(regions: Regions) -> list[tuple[int, int, int]]:
    """Return the regions as (file, start, end), sorted, with nearby regions merged."""
    merged: list[tuple[int, int, int]] = []
    for position in np.lexsort((regions.offsets, regions.files)):
        file, start = int(regions.files[position]), int(regions.offsets[position])
        end = start + int(regions.sizes[position])
        if merged and merged[-1][0] == file and start - merged[-1][2] <= _MERGE_GAP:
            merged[-1] = (file, merged[-1][1], max(merged[-1][2], end))
        else:
            merged.append((file, start, end))
    return merged
