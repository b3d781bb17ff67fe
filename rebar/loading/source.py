"""What the Loader asks of whoever makes its batches."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rebar.beton.reader import BetonFile
from rebar.loading.ahead import Wait

StartBatch = Callable[..., Wait[Any]]
"""Called with the threads and ``keys``, the SampleKeys of a batch."""


class Regions(NamedTuple):
    """Parts of files: the file's number, int64, offset and size (bytes), uint64, each ``[n]``."""

    files: NDArray[np.int64]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]


class BatchSource(Protocol):
    """Makes batches of given samples; knows nothing of orders, ranks and positions."""

    @property
    def indices(self) -> NDArray[np.int64]:
        """The samples that there are."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read."""

    @property
    def page_size(self) -> int:
        """Of the files, bytes."""

    @property
    def whole_batches(self) -> bool:
        """Whether one thread makes a whole batch; else the threads share it."""

    @property
    def beton(self) -> BetonFile | None:
        """The file, where it was opened as one of pictures and labels."""

    @property
    def corrupt_samples(self) -> dict[int, str]:
        """What was replaced so far: sample to reason."""

    def begin_epoch(self, resolution: int | None) -> StartBatch:
        """How to start a batch of the coming epoch."""

    def finish(self, batches: Iterator[Any]) -> Iterator[Any]:
        """What is done with each batch in the consumer's thread."""

    def pages(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """On which page each sample lies, counted through all files."""

    def regions(self, indices: NDArray[np.int64]) -> Regions:
        """Where in the files samples lie."""
