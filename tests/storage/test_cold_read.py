"""Cold reads come from the disk, whatever the page cache contains, and leave the page cache unchanged."""

import os
from pathlib import Path

import numpy as np
import pytest

from rebar.storage.cold_read import ColdRead, read_cold
from rebar.storage.page_cache import REQUEST_BYTES, Regions
from tests.conftest import mounted_tmpfs

SAMPLE = 100_000
COUNT = 80


def batches(size: int = SAMPLE, count: int = COUNT) -> list[Regions]:
    """Return batches of ten samples that are stored one after another."""
    starts = np.arange(count, dtype=np.uint64) * np.uint64(size)
    return [
        Regions(np.zeros(10, np.int64), starts[first : first + 10], np.full(10, size, np.uint64))
        for first in range(0, count, 10)
    ]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "samples"
    with path.open("wb") as written:
        written.write(os.urandom(SAMPLE * COUNT))
        os.fsync(written.fileno())
    if read_cold([path], batches(), seconds=10) is None:
        pytest.skip(f"{tmp_path} is not on a disk that can be read without the page cache")
    return path


def bytes_from_disk() -> int:
    return int(Path("/proc/self/io").read_text().split("\nread_bytes: ")[1].split()[0])


def is_cached(path: Path) -> bool:
    with path.open("rb") as opened:
        try:
            return os.preadv(opened.fileno(), [bytearray(4096)], SAMPLE * COUNT // 2, os.RWF_NOWAIT) > 0
        except BlockingIOError:
            return False


def test_read_cold_reads_a_cached_file_from_the_disk_and_keeps_it_cached(file: Path) -> None:
    assert len(file.read_bytes()) == SAMPLE * COUNT
    before = bytes_from_disk()
    assert read_cold([file], batches(), seconds=10) is not None
    assert bytes_from_disk() - before >= SAMPLE * COUNT
    assert is_cached(file)


def test_read_cold_does_not_fill_the_page_cache(file: Path) -> None:
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert read_cold([file], batches(), seconds=10) is not None
    assert not is_cached(file)


def test_read_cold_reports_samples_of_their_size(file: Path) -> None:
    found = read_cold([file], batches(), seconds=10)
    assert isinstance(found, ColdRead)
    assert found.bytes_per_second / found.samples_per_second == pytest.approx(SAMPLE, rel=0.05)  # aligned to blocks
    small = read_cold([file], batches(size=1000), seconds=10)  # ten samples of a batch are one request
    assert small is not None
    assert 1000 <= small.bytes_per_second / small.samples_per_second < 2000


def test_read_cold_reads_several_files(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(file.read_bytes())
    os.sync()
    files = np.arange(2, dtype=np.int64)
    regions = Regions(files, np.zeros(2, np.uint64), np.full(2, SAMPLE, np.uint64))
    before = bytes_from_disk()
    assert read_cold([file, other], [regions], seconds=10) is not None
    assert bytes_from_disk() - before >= 2 * SAMPLE


def test_read_cold_stops_when_the_time_is_over(file: Path) -> None:
    before = bytes_from_disk()
    assert read_cold([file], batches(), seconds=0) is not None
    assert REQUEST_BYTES <= bytes_from_disk() - before <= 32 * (REQUEST_BYTES + 8192) < SAMPLE * COUNT


def test_read_cold_of_a_file_in_memory_gives_no_result(tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "memory", megabytes=16) as folder:
        (folder / "samples").write_bytes(bytes(SAMPLE * COUNT))
        assert read_cold([folder / "samples"], batches(), seconds=10) is None
