"""The interface of image sources."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


class Source(Protocol):
    """Labeled images, accessed by index.

    A source is pickled once for each worker process. It should therefore be small when pickled, and open files or
    connections only when an image is read.
    """

    @property
    def class_names(self) -> Sequence[str]:
        """The name of every label, in label order."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def label(self, index: int) -> int:
        """Return the label of an image: an index into ``class_names``."""
        ...

    def read(self, index: int) -> bytes:
        """Return the content of the image file (JPEG, PNG, ...). Raises OSError if it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """Return a name of the image for messages and reports."""
        ...


@runtime_checkable
class BlockSource(Protocol):
    """A source that reads images in blocks, such as the row groups of a Parquet file."""

    @property
    def blocks(self) -> np.ndarray:
        """The block of each image, int64 ``[n]``."""
        ...


def labels_of(source: Source) -> np.ndarray:
    """Return the label of every image, int64 ``[n]``."""
    return np.fromiter((source.label(index) for index in range(len(source))), np.int64, len(source))


def blocks_of(source: Source) -> np.ndarray | None:
    """Return the block of every image, int64 ``[n]``; None if images can be read one by one."""
    return source.blocks if isinstance(source, BlockSource) else None
