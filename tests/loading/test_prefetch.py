"""Tests of rebar.loading.prefetch."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rebar.beton import BetonFile
from rebar.loading import CenterCrop, Loader, OrderOption
from rebar.loading.prefetch import READ_AHEAD_BATCHES, BufferPool, ReadAhead, Regions, merge_regions, split_slices

KB = 1 << 10


def address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


# ------------------------------------------------------------------ BufferPool


def test_buffer_pool_reuses_a_released_buffer() -> None:
    pool = BufferPool(capacity=2)
    first = pool.take(1000)
    first_address = address(first)
    assert address(second := pool.take(1000)) != first_address
    del first
    assert address(third := pool.take(1000)) == first_address
    assert address(second) != address(third)


HOLDERS: dict[str, Callable[[NDArray[np.uint8]], Any]] = {
    "reshaped": lambda array: array.reshape(10, 100),
    "slice": lambda array: array[3:7].view(np.uint16),
    "tensor": torch.from_numpy,
    "slice of a tensor": lambda array: torch.from_numpy(array.reshape(10, 100))[2:4, 5],
    "detached tensor": lambda array: torch.from_numpy(array).view(torch.int16).detach(),
    "storage": lambda array: torch.from_numpy(array).untyped_storage(),
    "array of a tensor": lambda array: torch.from_numpy(array)[5:].numpy(),
    "dlpack": lambda array: torch.utils.dlpack.to_dlpack(torch.from_numpy(array)),
    "memoryview": memoryview,
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=list(HOLDERS))
def test_buffer_pool_does_not_reuse_a_buffer_that_is_referenced(hold: Callable[[NDArray[np.uint8]], Any]) -> None:
    pool = BufferPool(capacity=2)
    array = pool.take(1000)
    buffer_address = address(array)
    held = hold(array)
    del array
    gc.collect()
    assert address(pool.take(1000)) != buffer_address
    del held
    gc.collect()
    assert buffer_address in {address(pool.take(1000)), address(pool.take(1000))}


def test_buffer_pool_reuses_larger_buffers_and_releases_smaller_ones() -> None:
    pool = BufferPool(capacity=2)
    large = address(pool.take(100_000))
    assert address(pool.take(10)) == large
    assert pool.take(200_000).nbytes == 200_000
    assert pool.take(0).nbytes == 0


def test_buffer_pool_keeps_at_most_its_capacity() -> None:
    pool = BufferPool(capacity=2)
    arrays = [pool.take(1000) for _ in range(10)]
    released = {address(array) for array in arrays}
    arrays.clear()
    kept = [pool.take(1000) for _ in range(2)]
    assert {address(array) for array in kept} <= released


# ------------------------------------------------------------------ split_slices


@pytest.mark.parametrize(("count", "slices"), [(0, 3), (1, 3), (3, 3), (10, 3), (10, 1)])
def test_split_slices_covers_all_items_evenly(count: int, slices: int) -> None:
    parts = [list(range(count))[part] for part in split_slices(count, slices)]
    assert sum(parts, []) == list(range(count))  # noqa: RUF017
    assert len(parts) == max(1, min(count, slices))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# ------------------------------------------------------------------ ReadAhead


def merge_one_file(*pairs: tuple[int, int]) -> list[tuple[int, int]]:
    """Merge the regions (offset, size) of one file."""
    offsets, sizes = np.array(pairs, np.uint64).reshape(-1, 2).T
    return [(start, end) for _, start, end in merge_regions(Regions(np.zeros(len(offsets), np.int64), offsets, sizes))]


def test_merge_regions_joins_nearby_regions_only() -> None:
    assert merge_one_file() == []
    assert merge_one_file((10, 5)) == [(10, 15)]
    assert merge_one_file((100 * KB, KB), (0, KB)) == [(0, 101 * KB)]
    assert merge_one_file((1000 * KB, KB), (0, KB)) == [(0, KB), (1000 * KB, 1001 * KB)]
    assert merge_one_file((0, 100), (10, 5)) == [(0, 100)]


def test_merge_regions_keeps_files_separate() -> None:
    regions = Regions(np.array([1, 0, 1]), np.array([5, 0, 0], np.uint64), np.array([5, 5, 5], np.uint64))
    assert merge_regions(regions) == [(0, 0, 5), (1, 0, 10)]


def test_read_ahead_requests_each_batch_once_eight_batches_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, length, advice: requested.append(start))
    path = tmp_path / "file"
    path.write_bytes(b"")
    reader = ReadAhead([path])
    batches = [np.array([number]) for number in range(20)]
    for number in range(20):
        reader.request(number, batches, lambda batch: Regions(batch * 0, batch * 10**6, batch * 0 + 1))
        assert requested == [10**6 * coming for coming in range(min(20, number + READ_AHEAD_BATCHES + 1))]


def test_loader_without_os_cache_requests_all_of_its_images(
    numbers: BetonFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[tuple[int, int]] = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda file, start, length, advice: requested.append((start, start + length))
    )
    loader = Loader(numbers.path, 8, 2, False, OrderOption.QUASI_RANDOM, cropper=CenterCrop(), resolution=8)
    for _ in loader:
        pass
    for index in np.concatenate(loader.batch_indices(0)):
        start, size = int(numbers.offsets[index]), int(numbers.sizes[index])
        assert any(first <= start and start + size <= end for first, end in requested)
