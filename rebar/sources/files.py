"""A million names in little memory.

Images that are parts of larger files, such as the members of a tar, read where they lie.

Images that are files in a folder.
"""

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np


class PackedNames:
    """Names kept in one bytes object, which is small and quick to send to a process."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._content = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._content[start : int(self._ends[index])])


class Range(NamedTuple):
    """An image's place: ``size`` bytes from ``offset`` on."""

    file_number: int
    name: str
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class ByteRanges:
    """Images at known places of ``files``. Make one with :meth:`of`.

    Nothing stays open between two images: there may be more files than a process may have open.
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
        """A source of the images at ``ranges``, with their ``labels``."""
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
        """The number of the image's class."""
        return int(self._labels[index])

    def read(self, index: int) -> bytes:
        """The image's bytes."""
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
        """The file, and the image's name in it."""
        return f"{self.files[self._file_numbers[index]]}:{self._names[index]}"


EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What counts as an image, in any mixture of upper and lower case: torchvision's list."""


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return name.lower().endswith(EXTENSIONS)


class LabelledFiles:
    """The files ``names`` below ``root``, with their labels, indices into ``class_names``."""

    def __init__(self, root: Path, class_names: Sequence[str], names: Iterable[str], labels: np.ndarray) -> None:
        self.root = root
        self.class_names = list(class_names)
        self._names = PackedNames(names)
        self._labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """The number of the image's class."""
        return int(self._labels[index])

    def read(self, index: int) -> bytes:
        """The content of the image's file."""
        with open(self.name(index), "rb") as file:
            return file.read()

    def name(self, index: int) -> str:
        """The path of the image's file."""
        return os.path.join(self.root, self._names[index])
