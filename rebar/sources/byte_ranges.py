"""Images at byte ranges of larger files, in compact arrays: about 45 bytes per image, plus its name."""

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rebar.sources.tar_members import Member


def index_classes(names: Sequence[object], class_names: Sequence[str]) -> np.ndarray:
    """Return the label of each class name, int32 ``[n]``: its index in ``class_names``."""
    labels: dict[object, int] = {name: label for label, name in enumerate(class_names)}
    return np.array([labels[name] for name in names], np.int32)


class PackedNames:
    """A list of names in a single bytes object: compact in memory, and cheap to pickle for worker processes."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.content = b"".join(encoded)
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    @staticmethod
    def from_arrays(content: bytes, ends: np.ndarray) -> "PackedNames":
        """Return the names that end at bytes ``ends`` (int64 ``[n]``) of ``content``."""
        names = PackedNames(())
        names.content, names.ends = content, ends
        return names

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.content[start : int(self.ends[index])])


@dataclass(frozen=True, eq=False)
class ByteRanges:
    """Images at known byte ranges of ``files``. Create one with :meth:`from_members`.

    The file is opened for every read, because there may be more files than the limit of open files per process.
    """

    class_names: Sequence[str]
    """Empty if labels are numbers whose names are not known yet."""
    files: Sequence[Path]
    names: PackedNames
    labels: np.ndarray
    """int32 ``[n]``, as are ``file_numbers``."""
    file_numbers: np.ndarray
    offsets: np.ndarray
    """Bytes, int64 ``[n]``, as are ``sizes``."""
    sizes: np.ndarray
    omitted: Mapping[str, int] = field(default_factory=dict)
    """See :class:`rebar.beton.images.OmittingSource`."""

    @staticmethod
    def from_members(
        path: Path,
        class_names: Sequence[str],
        members: Sequence[Member],
        labels: object,
        omitted: Mapping[str, int],
        file_number: int = 0,
    ) -> "ByteRanges":
        """Return a source of members of one tar, with one label each."""
        return ByteRanges(
            class_names=list(class_names),
            files=[path],
            names=PackedNames(member.name for member in members),
            labels=np.asarray(labels, np.int32),
            file_numbers=np.full(len(members), file_number, np.int32),
            offsets=np.array([member.offset for member in members], np.int64),
            sizes=np.array([member.size for member in members], np.int64),
            omitted=dict(omitted),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, order: np.ndarray) -> "ByteRanges":
        """Return the images at the indices ``order``, int64 ``[n]``, in this order."""
        arrays = {name: getattr(self, name)[order] for name in ("labels", "file_numbers", "offsets", "sizes")}
        return replace(self, names=PackedNames(self.names[index] for index in order.tolist()), **arrays)

    def label(self, index: int) -> int:
        """Return the label of an image."""
        return int(self.labels[index])

    def read(self, index: int) -> bytes:
        """Return the bytes of an image. Raises OSError if the file is truncated."""
        size = int(self.sizes[index])
        descriptor = os.open(self.files[self.file_numbers[index]], os.O_RDONLY)
        try:
            content = os.pread(descriptor, size, int(self.offsets[index]))
        finally:
            os.close(descriptor)
        if len(content) != size:
            raise OSError(errno.EIO, f"the file is truncated: {size - len(content):,} bytes of the image are missing")
        return content

    def name(self, index: int) -> str:
        """Return the path of the file and the name of the image within it."""
        return f"{self.files[self.file_numbers[index]]}:{self.names[index]}"
