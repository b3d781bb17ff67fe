"""Telling the kernel which parts of a file come next, so that the disk works while we do."""

import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BATCHES = 8
"""So many batches' bytes are asked for before they are decoded."""
_WORTH_A_SEEK = 256 << 10
"""Bytes; a smaller gap between two regions is read along."""

Regions = Callable[[NDArray[np.int64]], tuple[NDArray[np.uint64], NDArray[np.uint64]]]


class ReadAhead:
    """Asks for regions of one file to be read into the page cache. Owns a file descriptor."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def request(self, number: int, batches: Sequence[NDArray[np.int64]], regions: Regions) -> None:
        """Batch ``number`` is about to be decoded: ask for the one BATCHES later, and at first for all before."""
        coming = batches[: BATCHES + 1] if number == 0 else batches[number + BATCHES : number + BATCHES + 1]
        for batch in coming:
            for start, end in merged_regions(*regions(batch)):
                os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_WILLNEED)


def merged_regions(offsets: NDArray[np.uint64], sizes: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """The regions as (start, end), in the file's order, close ones made one."""
    merged: list[tuple[int, int]] = []
    for place in np.argsort(offsets, kind="stable"):
        start = int(offsets[place])
        end = start + int(sizes[place])
        if merged and start - merged[-1][1] <= _WORTH_A_SEEK:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
