"""The page cache: the memory available to it, and reading the bytes of memory-mapped files into it before their use."""

import functools
import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

_UNLIMITED = 1 << 62


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process and the page cache may use in addition to the memory now in use.

    This is the kernel's MemAvailable, or the remainder of the tightest limit of the process's control groups (version 1
    and 2). Cached files count as available. ``root`` is the folder of /proc and of the control groups.
    """
    fields = (line.split() for line in _read(root / "proc/meminfo").splitlines())
    machine = [int(words[1]) * 1024 for words in fields if words[0] == "MemAvailable:"]
    return min([*machine, *map(_cgroup_memory_left, _memory_groups(root)), _UNLIMITED])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _memory_groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's memory control groups, and of their ancestors."""
    groups = [line.split(":", 2) for line in _read(root / "proc/self/cgroup").splitlines()]
    version_1 = next((path for _, controllers, path in groups if "memory" in controllers.split(",")), None)
    version_2 = next((path for _, controllers, path in groups if not controllers), None)
    for line in _read(root / "proc/self/mountinfo").splitlines():
        words = line.split()
        kind, options = words[words.index("-") + 1], words[-1].split(",")
        path = version_2 if kind == "cgroup2" else version_1 if kind == "cgroup" and "memory" in options else None
        if path is None:
            continue
        mount = root / words[4].lstrip("/")
        # In a container, the mount shows only the container's own group, words[3].
        inside = Path(path).relative_to(words[3]) if Path(path).is_relative_to(words[3]) else Path()
        yield from (mount / folder for folder in (inside, *inside.parents) if ".." not in folder.parts)


def _cgroup_memory_left(folder: Path) -> int:
    """Return the bytes left until the limit of a control group, with its cached files counted as free."""
    limits = [_read(folder / name).strip() for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    limit = min((int(text) for text in limits if text.isdigit()), default=_UNLIMITED)
    usage = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
    if limit >= _UNLIMITED or not usage:
        return _UNLIMITED
    stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
    cached = sum(int(stat.get(f"total_{name}", stat.get(name, 0))) for name in ("inactive_file", "active_file"))
    return max(0, limit - int(usage) + cached)


def fits_in_page_cache(nbytes: int, available: int) -> bool:
    """Return whether a dataset is kept in the page cache with this much available memory, both in bytes."""
    return nbytes <= _MEMORY_FRACTION * available


class Regions(NamedTuple):
    """Byte ranges in files: file number (int64), offset and size in bytes (uint64), each ``[n]``."""

    files: NDArray[np.int64]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]


_FILE_BITS = 44  # the largest offset is 16 TB


def merge_regions(regions: Regions, gap: int) -> Regions:
    """Return the regions sorted, with regions of a file merged that are at most ``gap`` bytes apart."""
    starts = (regions.files.astype(np.int64) << _FILE_BITS) + regions.offsets.astype(np.int64)
    order = np.argsort(starts, kind="stable")
    starts, sizes = starts[order], regions.sizes.astype(np.int64)[order]
    ends = np.maximum.accumulate(starts + sizes)
    is_first = np.ones(len(starts), bool)
    is_first[1:] = starts[1:] > ends[:-1] + gap
    starts, ends = starts[is_first], ends[np.roll(is_first, -1)]
    offsets = (starts & ((1 << _FILE_BITS) - 1)).astype(np.uint64)
    return Regions(starts >> _FILE_BITS, offsets, (ends - starts).astype(np.uint64))


class MappedFiles(Protocol):
    """Memory-mapped files of samples."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths."""

    @property
    def mappings(self) -> tuple[mmap.mmap, ...]:
        """The memory mapping of each file."""

    def regions(self, indices: NDArray[np.int64]) -> Regions:
        """Return the byte ranges of samples."""


def mapping_of(array: NDArray[Any]) -> mmap.mmap:
    """Return the memory mapping that an array is a view of."""
    base: Any = array
    while not isinstance(base, mmap.mmap):
        base = base.base
    return base


READ_AHEAD_BATCHES = 8
"""Number of batches by which read-ahead precedes decoding, if memory suffices."""
REQUEST_BYTES = 128 << 10
"""The largest request, in bytes. The kernel ignores the rest of a request that is larger than the read-ahead of the
device and than the largest transfer of the device."""
BATCH_GAP, _WARM_UP_GAP = 16 << 10, 1 << 20
_WARM_UP_STEP = 4 << 20
_WARM_UP_PACE = 3
"""While the page cache is filled, each batch also requests this multiple of its own bytes, in file order."""
_MEMORY_FRACTION = 0.8
"""The largest dataset that is kept in the page cache, as a fraction of the available memory."""


class ReadAhead:
    """Requests upcoming batches from the disk, so that decoding threads do not wait for page faults.

    The kernel's own read-ahead, which follows page faults, is disabled (MADV_RANDOM): with samples in random order it
    reads several times the bytes that are needed. ``os_cache`` determines whether the complete dataset is read into the
    page cache as well, in file order during the first epoch; None: only if it fits in the available memory. Once it has
    been read, and fits, no more requests are made. Keeps the files open.
    """

    def __init__(self, mapped: MappedFiles, os_cache: bool | None) -> None:
        self._mapped = mapped
        self._os_cache = os_cache
        self._indices: NDArray[np.int64] | None = None
        self._used = Regions(*np.zeros((3, 0)))  # the merged regions of the samples ``_indices``
        self._steps: Iterator[tuple[int, int, int]] | None = None  # warm-up: file, start and end
        self._is_warm = False
        self._descriptors = []
        for path in mapped.files:
            self._descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            weakref.finalize(self, os.close, self._descriptors[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadAhead, (self._mapped, self._os_cache)

    def begin_epoch(
        self, indices: NDArray[np.int64], batches: Sequence[NDArray[np.int64]], *, start: float
    ) -> Callable[[int], None] | None:
        """Return the function to call with the number of each batch that is started; None if none is needed.

        ``indices`` are the samples that all ranks use, ``batches`` the samples of each batch of this rank. The warm-up
        starts at the fraction ``start`` of the data, so that the ranks of a node share the work.
        """
        available = available_memory()
        if indices is not self._indices:
            self._indices, self._used = indices, merge_regions(self._mapped.regions(indices), _WARM_UP_GAP)
            self._steps, self._is_warm = None, False
        fits = fits_in_page_cache(int(self._used.sizes.sum()), available)
        if not (fits if self._os_cache is None else self._os_cache):
            self._steps, self._is_warm = None, False
        elif self._steps is None:
            steps = list(split_regions(self._used, _WARM_UP_STEP))
            first = int(start * len(steps))
            self._steps = iter(steps[first:] + steps[:first])
        self._advise(mmap.MADV_NORMAL if self._is_warm and fits else mmap.MADV_RANDOM)
        if not batches or (self._is_warm and fits):
            return None
        bytes_per_batch = max(1, int(self._mapped.regions(batches[0]).sizes.sum()))
        share = available // (4 * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        ahead = max(1, min(READ_AHEAD_BATCHES, share // bytes_per_batch))
        return functools.partial(self._request, batches, bytes_per_batch, ahead, fits)

    def _request(
        self, batches: Sequence[NDArray[np.int64]], bytes_per_batch: int, ahead: int, fits: bool, number: int
    ) -> None:
        if self._is_warm and fits:
            return
        # At the start of an epoch two batches at a time, so that the first batch does not wait for all requests.
        before, last = (min(2 * n + 1, n + ahead) for n in (number - 1, number))
        for batch in batches[before + 1 : last + 1]:
            self._read(merge_regions(self._mapped.regions(batch), BATCH_GAP))
        if self._steps is not None and not self._is_warm:
            self._warm_up(self._steps, _WARM_UP_PACE * bytes_per_batch, fits)

    def _warm_up(self, steps: Iterator[tuple[int, int, int]], nbytes: int, fits: bool) -> None:
        """Request the next ``nbytes`` bytes of the data, rounded up to whole steps."""
        for file, start, end in steps:  # shared by all threads
            self._read(Regions(*(np.array([value]) for value in (file, start, end - start))))
            nbytes -= end - start
            if nbytes <= 0:
                return
        self._is_warm = True
        if fits:
            self._advise(mmap.MADV_NORMAL)

    def _read(self, regions: Regions) -> None:
        for file, start, end in split_regions(regions, REQUEST_BYTES):
            os.posix_fadvise(self._descriptors[file], start, end - start, os.POSIX_FADV_WILLNEED)

    def _advise(self, advice: int) -> None:
        for mapping in self._mapped.mappings:
            mapping.madvise(advice)


def split_regions(regions: Regions, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield the parts of up to ``size`` bytes of the regions: file, start and end."""
    for file, offset, length in zip(*(values.tolist() for values in regions), strict=True):
        for start in range(offset, offset + length, size):
            yield file, start, min(start + size, offset + length)
