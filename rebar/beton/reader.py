"""Open one or several .beton files as a dataset, and validate their tables before training starts."""

import ctypes
import glob
import math
import mmap
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rebar.beton.format import BetonError, read_tables
from rebar.beton.sidecar import Checksums, beton_changed, read_sidecar, sidecar_path
from rebar.storage.page_cache import mapping_of

MAX_CLASSES = 10_000_000
"""Larger labels are treated as damage."""


@dataclass(frozen=True, eq=False, repr=False)
class BetonFile:
    """A validated .beton file with one image and one label per sample. Create one with :meth:`open`.

    The arrays have one element per sample and are read-only. ``data`` is the memory-mapped file.
    """

    path: Path
    num_samples: int
    page_size: int
    """Bytes."""
    field_names: tuple[str, ...]
    labels: np.ndarray
    """int64"""
    heights: np.ndarray
    """uint16, pixels"""
    widths: np.ndarray
    """uint16, pixels"""
    modes: np.ndarray
    """uint8, MODE_JPG or MODE_RAW"""
    offsets: np.ndarray
    """uint64, byte offset of each image in the file"""
    sizes: np.ndarray
    """uint64, bytes of each image"""
    data: np.ndarray
    """uint8, the complete file"""
    class_names: tuple[str, ...] | None
    """The name of every label; None without a sidecar."""
    checksums: Checksums | None
    """Checksums of tables and pages; None if there is no sidecar, or one without checksums."""

    @staticmethod
    def open(path: Path | str) -> "BetonFile":
        """Open a file, validate its tables, and compare them with the sidecar's checksum. Images are not read.

        Raises BetonError if the file is missing, truncated, unfinished or damaged, has no images or labels, or does
        not match its sidecar.
        """
        path = Path(path)
        file_size = _size_of_regular_file(path)
        try:
            with path.open("rb") as file:
                tables = read_tables(file, path, file_size)
            data = np.memmap(path, np.uint8, mode="r")
        except OSError as error:
            raise _unreadable(path, error.strerror or error) from None
        sidecar = read_sidecar(path)
        if sidecar and sidecar.checksums and not sidecar.checksums.tables_match(data):
            raise beton_changed(path, f"its tables do not have the checksum in {sidecar_path(path).name}")
        return BetonFile(
            path=path,
            data=data,
            class_names=sidecar.class_names if sidecar else None,
            checksums=sidecar.checksums if sidecar else None,
            **tables,
        )

    @cached_property
    def num_classes(self) -> int:
        """The number of class names in the sidecar; without a sidecar, the largest label plus one.

        Raises BetonError if labels are negative, implausibly large, or out of range of the sidecar's class names.
        """
        lowest, highest = int(self.labels.min()), int(self.labels.max())
        names = self.class_names
        if lowest < 0:
            raise BetonError(
                f"{self.path}: label {lowest} is negative. Write the file with class labels.",
                code="beton-label-invalid",
            )
        if highest >= MAX_CLASSES:
            raise BetonError(
                f"{self.path}: label {highest:,} is implausibly large. Copy or write the file again.",
                code="beton-label-invalid",
            )
        if names is None:
            return highest + 1
        if highest >= len(names):
            raise BetonError(
                f"{self.path}: label {highest} is out of range: the sidecar names {len(names)} classes. Copy both "
                "files again.",
                code="beton-label-invalid",
            )
        return len(names)

    def image_bytes(self, index: int) -> np.ndarray:
        """Return the stored bytes of an image, as a uint8 view of the mapped file."""
        start = int(self.offsets[index])
        return self.data[start : start + int(self.sizes[index])]

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths of the files that make up this dataset."""
        return (self.path,)

    @property
    def mappings(self) -> tuple[mmap.mmap, ...]:
        """The memory mapping of each of :attr:`files`."""
        return (mapping_of(self.data),)

    def pages(self, indices: np.ndarray) -> np.ndarray:
        """Return the page number of each sample's image, int64."""
        pages: np.ndarray = (self.offsets[indices] // np.uint64(self.page_size)).astype(np.int64)
        return pages

    def regions(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the region of each sample's image: index into :attr:`files`, offset and size (bytes)."""
        return np.zeros(len(indices), np.int64), self.offsets[indices], self.sizes[indices]

    def page_matches(self, index: int) -> bool | None:
        """Return whether the page of a sample's image has its checksum; None without checksums."""
        if self.checksums is None:
            return None
        return self.checksums.page_matches(self.data, int(self.offsets[index]))

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        return f"<BetonFile {self.path}: {self.num_samples} samples>"

    def __reduce__(self) -> tuple[Any, ...]:
        return BetonFile.open, (self.path,)  # pickling a memmap copies its content


def _unreadable(path: Path, reason: object) -> BetonError:
    return BetonError(f"{path} cannot be read: {reason}. Check the path and its permissions.", code="beton-unreadable")


def _size_of_regular_file(path: Path) -> int:
    """Return the size in bytes of a regular file. Other files are not opened, because opening a pipe may block."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise BetonError(
            f"{path}: no such file or folder. Write a .beton with write_dataset.py.", code="beton-not-found"
        ) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if stat.S_ISDIR(status.st_mode):
        raise BetonError(f"{path} is a folder. Pass the .beton file in it.", code="beton-unreadable")
    if not stat.S_ISREG(status.st_mode):
        raise BetonError(
            f"{path} is not a regular file, so it cannot be memory-mapped. Pass a .beton file.",
            code="beton-unreadable",
        )
    if status.st_size == 0:
        raise BetonError(f"{path} is empty. Copy it again, or write it with write_dataset.py.", code="beton-truncated")
    return status.st_size


BetonPaths = str | Path | Sequence[str | Path]
"""A path; a glob pattern, whose matches are sorted by name; or a list of paths in the given order."""

_PER_SAMPLE = ("labels", "heights", "widths", "modes", "sizes")


def open_betons(paths: BetonPaths) -> BetonFile:
    """Open one or several .beton files as one dataset, with the samples in file order.

    Raises BetonError as :meth:`BetonFile.open` does, and if a pattern has no match or class names differ.
    """
    files = [BetonFile.open(path) for path in find_betons(paths)]
    return files[0] if len(files) == 1 else ConcatenatedBetons.concatenate(files)


def find_betons(paths: BetonPaths) -> list[Path]:
    """Return at least one path. Only patterns are checked for existing files. Raises BetonError."""
    if isinstance(paths, (str, Path)):
        pattern = str(paths)
        if not glob.has_magic(pattern) or Path(pattern).exists():
            return [Path(pattern)]
        found = sorted(glob.glob(pattern))
        if not found:
            raise BetonError(
                f"{pattern}: no file matches this pattern. Correct it, or write .beton files with write_dataset.py.",
                code="beton-not-found",
            )
        return [Path(path) for path in found]
    if not paths:
        raise BetonError("no .beton file was given. Pass at least one path.", code="beton-not-found")
    return [Path(path) for path in paths]


@dataclass(frozen=True, eq=False, repr=False)
class ConcatenatedBetons(BetonFile):
    """Several files as one dataset. ``data`` spans the mappings of all files; only the images' bytes may be read."""

    parts: tuple[BetonFile, ...]
    starts: np.ndarray
    """int64 [parts + 1], the first sample of every part, then the number of samples."""
    first_pages: np.ndarray
    """int64 [parts], the number of every part's first page."""

    @staticmethod
    def concatenate(parts: Sequence[BetonFile]) -> "ConcatenatedBetons":
        """Concatenate files. Raises BetonError if their class names differ."""
        first = parts[0]
        for part in parts:
            if part.class_names != first.class_names:
                raise BetonError(
                    f"{part.path}: its class names differ from those of {first.path}. Pass parts of one dataset.",
                    code="beton-classes-differ",
                )
        addresses = [part.data.__array_interface__["data"][0] for part in parts]
        start = min(addresses)
        end = max(address + part.data.size for address, part in zip(addresses, parts, strict=True))
        page_size = max(part.page_size for part in parts)
        pages = [-(-part.data.size // part.page_size) for part in parts]
        return ConcatenatedBetons(
            path=first.path.with_name(f"{first.path.name} and {len(parts) - 1} more"),
            num_samples=sum(map(len, parts)),
            page_size=page_size,
            field_names=first.field_names,
            offsets=np.concatenate(
                [part.offsets + np.uint64(address - start) for address, part in zip(addresses, parts, strict=True)]
            ),
            data=array_from_pointer(start, (end - start,), "|u1", read_only=True),
            class_names=first.class_names,
            checksums=None,
            parts=tuple(parts),
            starts=np.cumsum([0, *map(len, parts)]),
            first_pages=np.cumsum([0, *pages[:-1]]),
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _PER_SAMPLE},
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths of the parts."""
        return tuple(part.path for part in self.parts)

    @property
    def mappings(self) -> tuple[mmap.mmap, ...]:
        """The memory mapping of each of :attr:`files`."""
        return tuple(mapping_of(part.data) for part in self.parts)

    def pages(self, indices: np.ndarray) -> np.ndarray:
        """Return the page number of each sample's image, int64, counted across all parts."""
        files, offsets, _ = self.regions(indices)
        page_sizes = np.array([part.page_size for part in self.parts], np.uint64)
        pages: np.ndarray = self.first_pages[files] + (offsets // page_sizes[files]).astype(np.int64)
        return pages

    def regions(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the region of each sample's image: index into :attr:`files`, offset and size (bytes)."""
        files = np.searchsorted(self.starts, indices, side="right") - 1
        start = np.uint64(self.data.__array_interface__["data"][0])
        bases = np.array([part.data.__array_interface__["data"][0] for part in self.parts], np.uint64) - start
        return files, self.offsets[indices] - bases[files], self.sizes[indices]

    def image_bytes(self, index: int) -> np.ndarray:
        """Return the stored bytes of an image, as a uint8 view of the mapped file."""
        part, number = self._part(index)
        return part.image_bytes(number)

    def page_matches(self, index: int) -> bool | None:
        """Return whether the page of a sample's image has its checksum; None without checksums."""
        part, number = self._part(index)
        return part.page_matches(number)

    def _part(self, index: int) -> tuple[BetonFile, int]:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[number], index - int(self.starts[number])

    def __reduce__(self) -> tuple[Any, ...]:
        return open_betons, (self.files,)


def array_from_pointer(address: int, shape: tuple[int, ...], dtype: str, *, read_only: bool) -> np.ndarray[Any, Any]:
    """Return a view of the memory at ``address`` as an array of this shape and dtype. The caller keeps it allocated."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer: Any = (ctypes.c_char * size).from_address(address)
    array = np.frombuffer(buffer, dtype).reshape(shape)
    array.flags.writeable = not read_only
    return array
