"""Sources of image files: one file per image, or byte ranges of larger files such as tars."""

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File extensions of images, compared case-insensitively. The list is torchvision's ``IMG_EXTENSIONS``."""


def is_image(name: str) -> bool:
    """Return whether a file name has the extension of an image."""
    return name.lower().endswith(EXTENSIONS)


def index_classes(names: Sequence[str], class_names: Sequence[str]) -> np.ndarray:
    """Return the label of each class name, int32 ``[n]``: its index in ``class_names``."""
    labels = {name: label for label, name in enumerate(class_names)}
    return np.array([labels[name] for name in names], np.int32)


class PackedNames:
    """A list of names in a single bytes object: compact in memory, and cheap to pickle for worker processes."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._content = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._content[start : int(self._ends[index])])


class LabeledFiles:
    """The image files ``names`` below ``root``; ``labels`` are indices into ``class_names``."""

    def __init__(self, root: Path, class_names: Sequence[str], names: Iterable[str], labels: np.ndarray) -> None:
        self.root = root
        self.class_names = list(class_names)
        self._names = PackedNames(names)
        self._labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """Return the label of an image."""
        return int(self._labels[index])

    def read(self, index: int) -> bytes:
        """Return the content of the image file."""
        with open(self.name(index), "rb") as file:
            return file.read()

    def name(self, index: int) -> str:
        """Return the path of the image file."""
        return os.path.join(self.root, self._names[index])


class ByteRange(NamedTuple):
    """An image of ``size`` bytes at byte ``offset`` of file number ``file_number``."""

    file_number: int
    name: str
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class ByteRanges:
    """Images at known byte ranges of ``files``. Create one with :meth:`from_ranges`.

    The file is opened for every read, because there may be more files than the limit of open files per process.
    """

    class_names: Sequence[str]
    files: Sequence[Path]
    _names: PackedNames
    _labels: np.ndarray
    _file_numbers: np.ndarray
    _offsets: np.ndarray
    _sizes: np.ndarray

    @staticmethod
    def from_ranges(
        files: Sequence[Path], class_names: Sequence[str], ranges: Iterable[ByteRange], labels: object
    ) -> "ByteRanges":
        """Return a source of the images at ``ranges``, with one label each."""
        ranges = list(ranges)
        return ByteRanges(
            class_names=list(class_names),
            files=list(files),
            _names=PackedNames(image.name for image in ranges),
            _labels=np.asarray(labels, np.int32),
            _file_numbers=np.array([image.file_number for image in ranges], np.int32),
            _offsets=np.array([image.offset for image in ranges], np.int64),
            _sizes=np.array([image.size for image in ranges], np.int64),
        )

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """Return the label of an image."""
        return int(self._labels[index])

    def read(self, index: int) -> bytes:
        """Return the bytes of an image. Raises OSError if the file is truncated."""
        size = int(self._sizes[index])
        descriptor = os.open(self.files[self._file_numbers[index]], os.O_RDONLY)
        try:
            content = os.pread(descriptor, size, int(self._offsets[index]))
        finally:
            os.close(descriptor)
        if len(content) != size:
            raise OSError(errno.EIO, f"the file is truncated: {size - len(content):,} bytes of the image are missing")
        return content

    def name(self, index: int) -> str:
        """Return the path of the file and the name of the image within it."""
        return f"{self.files[self._file_numbers[index]]}:{self._names[index]}"
