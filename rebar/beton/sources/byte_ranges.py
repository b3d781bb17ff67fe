"""Pictures that are parts of larger files, such as the members of a tar, read where they lie."""

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rebar.beton.sources.names import PackedNames


class Range(NamedTuple):
    """A picture's place: ``size`` bytes from ``offset`` on."""

    file_number: int
    name: str
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class ByteRanges:
    """Pictures at known places of ``files``. Make one with :meth:`of`.

    Nothing stays open between two pictures: there may be more files than a process may have open.
    """

    class_names: Sequence[str]
    files: Sequence[Path]
    _names: PackedNames
    _labels: np.ndarray
    _file_numbers: np.ndarray
    _offsets: np.ndarray
    _sizes: np.ndarray

    @staticmethod
    def of(files: Sequence[Path], class_names: Sequence[str], ranges: Iterable[Range], labels: object) -> "ByteRanges":
        """A source of the pictures at ``ranges``, with their ``labels``."""
        ranges = list(ranges)
        return ByteRanges(
            class_names=list(class_names),
            files=list(files),
            _names=PackedNames(place.name for place in ranges),
            _labels=np.asarray(labels, np.int32),
            _file_numbers=np.array([place.file_number for place in ranges], np.int32),
            _offsets=np.array([place.offset for place in ranges], np.int64),
            _sizes=np.array([place.size for place in ranges], np.int64),
        )

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """The number of the picture's class."""
        return int(self._labels[index])

    def read(self, index: int) -> bytes:
        """The picture's bytes."""
        size = int(self._sizes[index])
        descriptor = os.open(self.files[self._file_numbers[index]], os.O_RDONLY)
        try:
            content = os.pread(descriptor, size, int(self._offsets[index]))
        finally:
            os.close(descriptor)
        if len(content) != size:
            raise OSError(errno.EIO, f"ends {size - len(content):,} bytes too early")
        return content

    def name(self, index: int) -> str:
        """The file, and the picture's name in it."""
        return f"{self.files[self._file_numbers[index]]}:{self._names[index]}"
