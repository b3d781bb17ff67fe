"""Telling the kernel which parts of a file come next, so that the disk works while we do."""

import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rebar.loading.batch_source import Regions

BATCHES = 8
"""So many batches' bytes are asked for before they are decoded."""
_WORTH_A_SEEK = 256 << 10
"""Bytes; a smaller gap between two regions is read along."""


class ReadAhead:
    """Asks for regions of files to be read into the page cache. Owns a file descriptor for each."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._descriptors = []
        for path in paths:
            self._descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            weakref.finalize(self, os.close, self._descriptors[-1])

    def request(
        self, number: int, batches: Sequence[NDArray[np.int64]], regions: Callable[[NDArray[np.int64]], Regions]
    ) -> None:
        """Batch ``number`` is about to be decoded: ask for the one BATCHES later, and at first for all before."""
        coming = batches[: BATCHES + 1] if number == 0 else batches[number + BATCHES : number + BATCHES + 1]
        for batch in coming:
            for file, start, end in merged(regions(batch)):
                os.posix_fadvise(self._descriptors[file], start, end - start, os.POSIX_FADV_WILLNEED)


def merged(regions: Regions) -> list[tuple[int, int, int]]:
    """The regions as (file, start, end), in the files' order, close ones made one."""
    found: list[tuple[int, int, int]] = []
    for place in np.lexsort((regions.offsets, regions.files)):
        file, start = int(regions.files[place]), int(regions.offsets[place])
        end = start + int(regions.sizes[place])
        if found and found[-1][0] == file and start - found[-1][2] <= _WORTH_A_SEEK:
            found[-1] = (file, found[-1][1], max(found[-1][2], end))
        else:
            found.append((file, start, end))
    return found
