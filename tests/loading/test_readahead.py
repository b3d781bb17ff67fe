"""What is asked of the disk, and when."""

import os
from pathlib import Path

import numpy as np
import pytest

from rebar.beton import BetonFile
from rebar.loading import CenterCrop, Loader, OrderOption
from rebar.loading.batch_source import Regions
from rebar.loading.readahead import BATCHES, ReadAhead, merged

KB = 1 << 10


def merged_pairs(*pairs: tuple[int, int]) -> list[tuple[int, int]]:
    """Of one file's regions (offset, size)."""
    offsets, sizes = np.array(pairs, np.uint64).reshape(-1, 2).T
    return [(start, end) for _, start, end in merged(Regions(np.zeros(len(offsets), np.int64), offsets, sizes))]


def test_close_regions_are_read_as_one_and_far_ones_are_not() -> None:
    assert merged_pairs() == []
    assert merged_pairs((10, 5)) == [(10, 15)]
    assert merged_pairs((100 * KB, KB), (0, KB)) == [(0, 101 * KB)]
    assert merged_pairs((1000 * KB, KB), (0, KB)) == [(0, KB), (1000 * KB, 1001 * KB)]
    assert merged_pairs((0, 100), (10, 5)) == [(0, 100)]


def test_regions_of_two_files_stay_apart() -> None:
    regions = Regions(np.array([1, 0, 1]), np.array([5, 0, 0], np.uint64), np.array([5, 5, 5], np.uint64))
    assert merged(regions) == [(0, 0, 5), (1, 0, 10)]


def test_every_batch_is_asked_for_once_and_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, length, advice: asked.append(start))
    path = tmp_path / "file"
    path.write_bytes(b"")
    reader = ReadAhead([path])
    batches = [np.array([number]) for number in range(20)]
    for number in range(20):
        reader.request(number, batches, lambda batch: Regions(batch * 0, batch * 10**6, batch * 0 + 1))
        assert asked == [10**6 * coming for coming in range(min(20, number + BATCHES + 1))]


def test_a_loader_asks_for_all_of_its_images(numbers: BetonFile, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, length, advice: asked.append((start, start + length)))
    loader = Loader(numbers.path, 8, 2, False, OrderOption.QUASI_RANDOM, cropper=CenterCrop(), resolution=8)
    for _ in loader:
        pass
    for index in np.concatenate(loader.batch_indices(0)):
        start, size = int(numbers.offsets[index]), int(numbers.sizes[index])
        assert any(begin <= start and start + size <= end for begin, end in asked)
