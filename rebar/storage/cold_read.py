"""Measure how fast samples are read from the disk that stores them, whatever is in the page cache."""

import mmap
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rebar.storage.page_cache import BATCH_GAP, REQUEST_BYTES, Regions, merge_regions, split_regions

_ALIGNMENT = 4096
"""Bytes. Reads that bypass the page cache must start and end at a multiple of the disk's block size."""
_READS_IN_FLIGHT = 32
_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class ColdRead:
    """Bytes/s read from the disk, and the samples/s that this is."""

    bytes_per_second: float
    samples_per_second: float


def read_cold(files: Sequence[Path], batches: Iterable[Regions], *, seconds: float) -> ColdRead | None:
    """Read batches of samples for at most about ``seconds``, with the requests that ReadAhead would make.

    Each of ``batches`` has the region of each of its samples. Reads with O_DIRECT, so cached data is neither used nor
    evicted. Returns None if the file system has no such reads, or answers them from memory, as tmpfs does.
    """
    requests, samples = _requests(batches)
    before = _bytes_from_disk()
    try:
        nbytes, duration = _read(files, requests, seconds)
    except OSError:  # EINVAL: not supported
        return None
    if before is not None and (_bytes_from_disk() or 0) - before < nbytes / 2:
        return None
    total = sum(end - start for _, start, end in requests)
    return ColdRead(nbytes / duration, nbytes / duration * samples / total)


def _requests(batches: Iterable[Regions]) -> tuple[list[tuple[int, int, int]], int]:
    """Return the aligned requests (file, start and end) of the first batches, and the number of their samples."""
    requests: list[tuple[int, int, int]] = []
    nbytes = samples = 0
    for regions in batches:
        for file, start, end in split_regions(merge_regions(regions, BATCH_GAP), REQUEST_BYTES):
            start, end = start // _ALIGNMENT * _ALIGNMENT, -(-end // _ALIGNMENT) * _ALIGNMENT
            requests.append((file, start, end))
            nbytes += end - start
        samples += len(regions.sizes)
        if nbytes > _MAX_BYTES:
            break
    return requests, samples


def _read(files: Sequence[Path], requests: Sequence[tuple[int, int, int]], seconds: float) -> tuple[int, float]:
    """Read with many requests in flight until all are done or the time is over. Return the bytes and the duration."""
    remaining: Iterator[tuple[int, int, int]] = iter(requests)  # shared by all threads
    started = time.perf_counter()

    def read_some() -> int:
        nbytes = 0
        with mmap.mmap(-1, REQUEST_BYTES + 2 * _ALIGNMENT) as buffer, memoryview(buffer) as memory:
            for file, start, end in remaining:
                nbytes += os.preadv(descriptors[file], [memory[: end - start]], start)
                if time.perf_counter() - started > seconds:
                    break
        return nbytes

    with ExitStack() as stack:
        descriptors = []
        for path in files:
            descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT))
            stack.callback(os.close, descriptors[-1])
        with ThreadPoolExecutor(min(_READS_IN_FLIGHT, len(requests))) as threads:
            tasks = [threads.submit(read_some) for _ in range(min(_READS_IN_FLIGHT, len(requests)))]
            nbytes = sum(task.result() for task in tasks)
        return nbytes, time.perf_counter() - started


def _bytes_from_disk() -> int | None:
    """Return the bytes that this process has read from disks so far; None if the kernel does not report it."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)
