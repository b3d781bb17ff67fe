"""The available memory follows control groups; read-ahead requests each byte once, early enough, and no others."""

import mmap
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from rebar.storage import page_cache
from rebar.storage.page_cache import READ_AHEAD_BATCHES, ReadAhead, Regions, available_memory, mapping_of, merge_regions

KB, GB = 1 << 10, 1 << 30
Mount = tuple[str, str, str, str]
Requests = list[tuple[int, int]]
SetMemory = Callable[[int], None]

# ------------------------------------------------------------------ available memory


def make_root(root: Path, groups: str, mounts: list[Mount], files: dict[str, Any]) -> Path:
    """Create /proc, with mounts (root, mount point, type, options), and the files of control groups."""
    mountinfo = [f"30 20 0:26 {top} {point} rw,nosuid - {kind} none {opts}" for top, point, kind, opts in mounts]
    proc = {
        "proc/meminfo": f"MemTotal:  99999999 kB\nMemAvailable: {64 * GB // KB} kB\n",
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": "\n".join(["20 1 8:1 / / rw - ext4 /dev/root rw", *mountinfo]),
    }
    for name, content in {**proc, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content))
    return root


VERSION_2 = [("/", "/sys/fs/cgroup", "cgroup2", "rw")]
VERSION_1 = [
    *(("/", f"/sys/fs/cgroup/{name}", "cgroup", f"rw,{name}") for name in ("cpu", "memory")),
    ("/", "/sys/fs/cgroup/unified", "cgroup2", "rw"),
]


def version_2(folder: str, limit: object, used: int, cached: int, high: object = "max") -> dict[str, Any]:
    stat = f"anon 1\ninactive_file {cached // 2}\nactive_file {cached - cached // 2}\n"
    names = {"memory.max": limit, "memory.high": high, "memory.current": used, "memory.stat": stat}
    return {f"sys/fs/cgroup/{folder}{name}": content for name, content in names.items()}


def version_1(folder: str, limit: int, used: int, cached: int) -> dict[str, Any]:
    stat = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {cached}\ntotal_active_file 0\n"
    names = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": stat}
    return {f"sys/fs/cgroup/memory/{folder}{name}": content for name, content in names.items()}


def test_available_memory_of_this_machine_is_plausible() -> None:
    assert 0 < available_memory() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        ("", [], {}, 64 * GB),
        ("0::/job/step\n", VERSION_2, version_2("job/step/", 8 * GB, 3 * GB, 1 * GB), 6 * GB),
        ("0::/job/step\n", VERSION_2, version_2("job/", 8 * GB, 3 * GB, 1 * GB), 6 * GB),
        ("0::/job\n", VERSION_2, version_2("job/", "max", 3 * GB, 1 * GB), 64 * GB),
        ("0::/job\n", VERSION_2, version_2("job/", "max", 3 * GB, 1 * GB, high=8 * GB), 6 * GB),
        ("0::/job\n", VERSION_2, version_2("job/", 100 * GB, 3 * GB, 1 * GB), 64 * GB),
        ("0::/job\n", VERSION_2, version_2("job/", 2 * GB, 3 * GB, 0), 0),
        ("0::/\n", VERSION_2, version_2("", 8 * GB, 3 * GB, 1 * GB), 6 * GB),
        ("0::/job\n", VERSION_2, version_2("other/", 8 * GB, 3 * GB, 1 * GB), 64 * GB),
        ("4:memory:/job\n1:cpu:/\n0::/\n", VERSION_1, version_1("job/", 8 * GB, 3 * GB, GB), 6 * GB),
        ("4:memory:/job/step\n0::/\n", VERSION_1, version_1("job/", 8 * GB, 3 * GB, GB), 6 * GB),
        ("4:memory:/job\n0::/\n", VERSION_1, version_1("job/", 9223372036854771712, 3 * GB, GB), 64 * GB),
        # A container: the mount shows only its own group.
        (
            "4:memory:/docker/abc\n",
            [("/docker/abc", "/sys/fs/cgroup/memory", "cgroup", "rw,memory")],
            version_1("", 8 * GB, 3 * GB, GB),
            6 * GB,
        ),
        ("0::/../other\n", VERSION_2, version_2("", 8 * GB, 3 * GB, GB), 6 * GB),
    ],
)
def test_available_memory_is_what_is_left_of_the_smallest_limit(
    groups: str, mounts: list[Mount], files: dict[str, Any], expected: int, tmp_path: Path
) -> None:
    assert available_memory(make_root(tmp_path, groups, mounts, files)) == expected


# ------------------------------------------------------------------ merge_regions


def merge_one_file(gap: int, *pairs: tuple[int, int]) -> Requests:
    """Merge the regions (offset, size) of one file; return (start, end) pairs."""
    offsets, sizes = np.array(pairs, np.uint64).reshape(-1, 2).T
    merged = merge_regions(Regions(np.zeros(len(offsets), np.int64), offsets, sizes), gap)
    return [(start, start + size) for start, size in zip(merged.offsets.tolist(), merged.sizes.tolist(), strict=True)]


def test_merge_regions_joins_nearby_regions_only() -> None:
    assert merge_one_file(0) == []
    assert merge_one_file(0, (10, 5)) == [(10, 15)]
    assert merge_one_file(100, (100, 10), (0, 10)) == [(0, 110)]
    assert merge_one_file(80, (100, 10), (0, 10)) == [(0, 10), (100, 110)]
    assert merge_one_file(0, (0, 100), (10, 5), (100, 1), (102, 1)) == [(0, 101), (102, 103)]
    assert merge_one_file(0, (1 << 43, 5), (0, 5)) == [(0, 5), (1 << 43, (1 << 43) + 5)]


def test_merge_regions_keeps_files_separate() -> None:
    regions = Regions(np.array([1, 0, 1]), np.array([5, 0, 0], np.uint64), np.full(3, 5, np.uint64))
    merged = merge_regions(regions, gap=9)
    assert [values.tolist() for values in merged] == [[0, 1], [0, 0], [5, 10]]


# ------------------------------------------------------------------ ReadAhead

SIZE, STRIDE = 40 * KB, 300 * KB
"""Bytes of a sample, and between the starts of two samples, which are too far apart to be merged."""


@dataclass(frozen=True)
class Records:
    """A memory-mapped file of samples of equal size."""

    files: tuple[Path, ...]
    mappings: tuple[mmap.mmap, ...]

    @staticmethod
    def open(path: Path) -> "Records":
        return Records((path,), (mapping_of(np.memmap(path, np.uint8, mode="r")),))

    def __reduce__(self) -> tuple[Any, ...]:
        return Records.open, self.files

    def regions(self, indices: NDArray[np.int64]) -> Regions:
        offsets = indices.astype(np.uint64) * np.uint64(STRIDE)
        return Regions(np.zeros(len(indices), np.int64), offsets, np.full(len(indices), SIZE, np.uint64))

    def is_random(self) -> bool:
        """Return whether the kernel's read-ahead is disabled (man 5 proc, smaps: rr)."""
        smaps = Path("/proc/self/smaps").read_text().split(str(self.files[0]))[1]
        return " rr" in smaps[smaps.index("VmFlags") :].splitlines()[0]


BATCHES = [np.array([2 * number, 2 * number + 1]) for number in range(20)]
INDICES = np.arange(40)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    path = tmp_path / "records"
    path.write_bytes(bytes(len(INDICES) * STRIDE))
    return Records.open(path)


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> Requests:
    """The requests (start, end) to the kernel so far."""
    ranges: Requests = []

    def record(file: int, start: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        ranges.append((start, start + length))

    monkeypatch.setattr(os, "posix_fadvise", record)
    return ranges


@pytest.fixture
def set_memory(monkeypatch: pytest.MonkeyPatch) -> SetMemory:
    return lambda nbytes: monkeypatch.setattr(page_cache, "available_memory", lambda: nbytes)


def ranges_of(batches: list[NDArray[np.int64]]) -> Requests:
    return [(int(index) * STRIDE, int(index) * STRIDE + SIZE) for batch in batches for index in batch]


def covered_by(requests: Requests) -> NDArray[np.bool_]:
    """Return, for each byte of the file, whether it was requested."""
    covered = np.zeros(len(INDICES) * STRIDE, bool)
    for start, end in requests:
        covered[start:end] = True
    return covered


def run_epoch(read_ahead: ReadAhead, start: float = 0) -> bool:
    """Call the request function for every batch; return whether there is one."""
    request = read_ahead.begin_epoch(INDICES, BATCHES, start=start)
    for number in range(len(BATCHES)):
        if request is not None:
            request(number)
    return request is not None


def test_each_batch_is_requested_once_and_up_to_eight_batches_early(records: Records, requested: Requests) -> None:
    request = ReadAhead(records, False).begin_epoch(INDICES, BATCHES, start=0)
    assert request is not None
    for number in range(20):
        request(number)
        coming = min(20, 2 * number + 2, number + READ_AHEAD_BATCHES + 1)
        assert requested == ranges_of(BATCHES[:coming])


@pytest.mark.parametrize(("local_world_size", "ahead"), [(1, 4), (2, 2), (4, 1), (64, 1)])
def test_read_ahead_of_all_ranks_of_a_node_uses_a_quarter_of_the_memory(
    local_world_size: int,
    ahead: int,
    records: Records,
    requested: Requests,
    set_memory: SetMemory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_world_size))
    set_memory(4 * 4 * 2 * SIZE)
    request = ReadAhead(records, False).begin_epoch(INDICES, BATCHES, start=0)
    assert request is not None
    for number in range(8):
        request(number)
    assert requested == ranges_of(BATCHES[: 8 + ahead])


@pytest.mark.parametrize("os_cache", [None, False])
def test_data_larger_than_memory_is_read_exactly_in_every_epoch(
    os_cache: bool | None, records: Records, requested: Requests, set_memory: SetMemory
) -> None:
    set_memory(len(INDICES) * SIZE)
    read_ahead = ReadAhead(records, os_cache)
    for _ in range(2):
        requested.clear()
        assert run_epoch(read_ahead)
        assert requested == ranges_of(BATCHES)
        assert records.is_random()


@pytest.mark.parametrize("os_cache", [None, True])
@pytest.mark.parametrize("start", [0, 0.75])
def test_data_that_fit_are_read_completely_in_the_first_epoch_and_not_again(
    os_cache: bool | None, start: float, records: Records, requested: Requests
) -> None:
    read_ahead = ReadAhead(records, os_cache)
    assert run_epoch(read_ahead, start)
    assert all(0 < end - first <= 128 * KB for first, end in requested)  # the kernel may ignore the rest of larger ones
    covered, last_byte = covered_by(requested), (len(INDICES) - 1) * STRIDE + SIZE
    assert covered[:last_byte].all()
    assert not covered[last_byte:].any()
    assert not records.is_random()
    assert not run_epoch(read_ahead, start)


def test_data_that_do_not_fit_any_more_are_read_ahead_again(
    records: Records, requested: Requests, set_memory: SetMemory
) -> None:
    read_ahead = ReadAhead(records, None)
    run_epoch(read_ahead)
    requested.clear()
    set_memory(SIZE)
    assert run_epoch(read_ahead)
    assert requested == ranges_of(BATCHES)
    assert records.is_random()


def test_os_cache_true_fills_the_cache_also_if_the_data_do_not_fit(
    records: Records, requested: Requests, set_memory: SetMemory
) -> None:
    set_memory(SIZE)
    read_ahead = ReadAhead(records, True)
    run_epoch(read_ahead)
    assert len(requested) > len(INDICES)
    requested.clear()
    assert run_epoch(read_ahead)
    assert requested == ranges_of(BATCHES)
    set_memory(GB)
    assert not run_epoch(read_ahead)
    assert not records.is_random()


def test_other_samples_are_read_into_the_cache_as_well(records: Records, requested: Requests) -> None:
    read_ahead = ReadAhead(records, None)
    request = read_ahead.begin_epoch(INDICES[:2], BATCHES[:1], start=0)
    assert request is not None
    request(0)
    requested.clear()
    assert run_epoch(read_ahead)
    assert all(covered_by(requested)[start:end].all() for start, end in ranges_of(BATCHES))


def test_pickled_read_ahead_starts_without_a_cache(records: Records, requested: Requests) -> None:
    open_files = psutil.Process().num_fds()
    read_ahead = ReadAhead(records, None)
    run_epoch(read_ahead)
    other = pickle.loads(pickle.dumps(read_ahead))
    assert run_epoch(other)
    del read_ahead, other
    assert psutil.Process().num_fds() == open_files
