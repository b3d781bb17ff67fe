"""What every source of pictures is."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


class Source(Protocol):
    """Pictures with labels, found by number.

    A source is pickled once for every worker process: it should be compact, and open what it reads from
    only when it is asked for a picture.
    """

    @property
    def class_names(self) -> Sequence[str]:
        """The name of every label, in the labels' order."""
        ...

    def __len__(self) -> int:
        """The number of pictures."""
        ...

    def label(self, index: int) -> int:
        """The label of a picture, an index into ``class_names``."""
        ...

    def read(self, index: int) -> bytes:
        """The picture as it is stored (a JPEG, PNG, ... file). Raises OSError where that fails."""
        ...

    def name(self, index: int) -> str:
        """What to call the picture in messages."""
        ...


@runtime_checkable
class BlockSource(Protocol):
    """A source that can only read many pictures at once, such as the row groups of a Parquet file."""

    @property
    def blocks(self) -> np.ndarray:
        """int64, the number of the block that each picture lies in."""
        ...


def labels_of(source: Source) -> np.ndarray:
    """The label of every picture, int64."""
    return np.fromiter((source.label(index) for index in range(len(source))), np.int64, len(source))


def blocks_of(source: Source) -> np.ndarray | None:
    """The block of every picture, int64; None where each can be read alone."""
    return source.blocks if isinstance(source, BlockSource) else None
