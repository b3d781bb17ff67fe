"""What every source of images is."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


class Source(Protocol):
    """Images with labels, found by number.

    A source is pickled once for every worker process: it should be compact, and open what it reads from
    only when it is asked for an image.
    """

    @property
    def class_names(self) -> Sequence[str]:
        """The name of every label, in the labels' order."""
        ...

    def __len__(self) -> int:
        """The number of images."""
        ...

    def label(self, index: int) -> int:
        """The label of an image, an index into ``class_names``."""
        ...

    def read(self, index: int) -> bytes:
        """The image as it is stored (a JPEG, PNG, ... file). Raises OSError where that fails."""
        ...

    def name(self, index: int) -> str:
        """What to call the image in messages."""
        ...


@runtime_checkable
class BlockSource(Protocol):
    """A source that can only read many images at once, such as the row groups of a Parquet file."""

    @property
    def blocks(self) -> np.ndarray:
        """int64, the number of the block that each image lies in."""
        ...


def labels_of(source: Source) -> np.ndarray:
    """The label of every image, int64."""
    return np.fromiter((source.label(index) for index in range(len(source))), np.int64, len(source))


def blocks_of(source: Source) -> np.ndarray | None:
    """The block of every image, int64; None where each can be read alone."""
    return source.blocks if isinstance(source, BlockSource) else None
