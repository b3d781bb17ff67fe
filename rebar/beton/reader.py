"""A .beton file opened for reading: what is wrong with it is found here, not while training.

Several .beton files as one: the parts of a dataset that was written in shards.
"""

import glob
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rebar.beton.format import BetonError
from rebar.beton.sidecar import Checksums, changed, read_sidecar, sidecar_path
from rebar.beton.tables import read_tables
from rebar.storage.array_from_pointer import array_from_pointer

MOST_CLASSES = 10_000_000
"""More than any data set has: a larger label is damage."""


@dataclass(frozen=True, eq=False, repr=False)
class BetonFile:
    """A validated .beton file with one image and one label a sample. Make one with :meth:`open`.

    The arrays have one element a sample and are read-only; ``data`` is the mapped file.
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
    """uint64, where in the file the image's bytes begin"""
    sizes: np.ndarray
    """uint64, how many bytes the image has"""
    data: np.ndarray
    """uint8, the whole file, mapped"""
    class_names: tuple[str, ...] | None
    """The name of every label, where a sidecar tells them."""
    checksums: Checksums | None
    """Of tables and pages, where a sidecar tells them."""

    @staticmethod
    def open(path: Path | str) -> "BetonFile":
        """Read and check a file's tables, and compare them with the sidecar's checksum; images are not touched.

        Raises BetonError for a file that is missing, cut short, unfinished, damaged, that lacks images or
        labels, or that is not the one its sidecar was written with.
        """
        path = Path(path)
        file_size = _size_of_regular_file(path)
        try:
            with path.open("rb") as file:
                tables = read_tables(file, path, file_size)
            data = np.memmap(path, np.uint8, mode="r")
        except OSError as error:
            raise BetonError(f"{path}: cannot be read: {error.strerror or error}") from None
        sidecar = read_sidecar(path)
        if sidecar and sidecar.checksums and not sidecar.checksums.tables_match(data):
            raise changed(path, f"its tables do not match the checksum in {sidecar_path(path).name}")
        return BetonFile(
            path=path,
            data=data,
            class_names=sidecar.class_names if sidecar else None,
            checksums=sidecar.checksums if sidecar else None,
            **tables,
        )

    @cached_property
    def num_classes(self) -> int:
        """The number of classes: the sidecar's, else the largest label plus one.

        Raises BetonError where labels are negative, absurdly large, or beyond the sidecar's classes.
        """
        lowest, highest = int(self.labels.min()), int(self.labels.max())
        if lowest < 0:
            raise BetonError(f"{self.path}: label {lowest} is negative, so these labels are no class numbers")
        if highest >= MOST_CLASSES:
            raise BetonError(f"{self.path}: label {highest:,} is no class number; copy or write the file again")
        if self.class_names is None:
            return highest + 1
        if highest >= len(self.class_names):
            raise BetonError(f"{self.path}: has label {highest}, but its sidecar names {len(self.class_names)} classes")
        return len(self.class_names)

    def image_bytes(self, index: int) -> np.ndarray:
        """The stored bytes of a sample's image: a uint8 view of the mapped file."""
        start = int(self.offsets[index])
        return self.data[start : start + int(self.sizes[index])]

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths of the files that samples lie in."""
        return (self.path,)

    def pages(self, indices: np.ndarray) -> np.ndarray:
        """On which page of the file each sample's image lies, int64."""
        pages: np.ndarray = (self.offsets[indices] // np.uint64(self.page_size)).astype(np.int64)
        return pages

    def regions(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where samples' images lie: the number in :attr:`files`, offset and size (bytes)."""
        return np.zeros(len(indices), np.int64), self.offsets[indices], self.sizes[indices]

    def page_matches(self, index: int) -> bool | None:
        """Whether the page that a sample's image lies on is as it was written; None where no sidecar tells."""
        if self.checksums is None:
            return None
        return self.checksums.page_matches(self.data, int(self.offsets[index]))

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        return f"<BetonFile {self.path}: {self.num_samples} samples>"

    def __reduce__(self) -> tuple[Any, ...]:
        return BetonFile.open, (self.path,)  # a memmap would be pickled with all of its content


def _size_of_regular_file(path: Path) -> int:
    """The size in bytes; checked before opening, because opening a pipe may wait for ever."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise BetonError(f"{path}: no such file; write_dataset.py writes one") from None
    except (OSError, ValueError) as error:
        raise BetonError(f"{path}: cannot be read: {error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise BetonError(f"{path}: is a folder; give the .beton file itself")
    if not stat.S_ISREG(status.st_mode):
        raise BetonError(f"{path}: is no regular file (a pipe or device cannot be mapped); give a .beton file")
    if status.st_size == 0:
        raise BetonError(f"{path}: is empty; copy it again, or write it with write_dataset.py")
    return status.st_size


Files = str | Path | Sequence[str | Path]
"""A file; a pattern of shell wildcards, whose files are sorted by name; or files in the order given."""

_PER_SAMPLE = ("labels", "heights", "widths", "modes", "sizes")


def open_betons(files: Files) -> BetonFile:
    """Open one or several files as one dataset, its samples in the order of the files.

    Raises BetonError as :meth:`BetonFile.open` does, for a pattern that matches nothing, and for files that do not
    name the same classes.
    """
    paths = find_betons(files)
    return (
        BetonFile.open(paths[0])
        if len(paths) == 1
        else ConcatenatedBetons.join([BetonFile.open(path) for path in paths])
    )


def find_betons(files: Files) -> list[Path]:
    """The files that are meant, at least one; whether they exist is seen when they are opened."""
    if isinstance(files, (str, Path)):
        pattern = str(files)
        if not glob.has_magic(pattern) or Path(pattern).exists():
            return [Path(pattern)]
        found = sorted(glob.glob(pattern))
        if not found:
            raise BetonError(f"{pattern}: no file matches this pattern; write_dataset.py writes .beton files")
        return [Path(path) for path in found]
    if not files:
        raise BetonError("no .beton file was given")
    return [Path(path) for path in files]


@dataclass(frozen=True, eq=False, repr=False)
class ConcatenatedBetons(BetonFile):
    """Files one behind the other. ``data`` spans the memory they are mapped to: only images' bytes are in it."""

    parts: tuple[BetonFile, ...]
    starts: np.ndarray
    """int64 [parts + 1], the first sample of every part, and the number of samples."""
    first_pages: np.ndarray
    """int64 [parts], the number of every part's first page."""

    @staticmethod
    def join(parts: Sequence[BetonFile]) -> "ConcatenatedBetons":
        """Raises BetonError for files that do not name the same classes."""
        first = parts[0]
        for part in parts:
            if part.class_names != first.class_names:
                raise BetonError(
                    f"{part.path} and {first.path} do not name the same classes in the same order, so they are not "
                    "parts of one dataset"
                )
        addresses = [part.data.__array_interface__["data"][0] for part in parts]
        lowest = min(addresses)
        behind = max(address + part.data.size for address, part in zip(addresses, parts, strict=True))
        page_size = max(part.page_size for part in parts)
        pages = [-(-part.data.size // part.page_size) for part in parts]
        return ConcatenatedBetons(
            path=first.path.with_name(f"{first.path.name} and {len(parts) - 1} more"),
            num_samples=sum(map(len, parts)),
            page_size=page_size,
            field_names=first.field_names,
            offsets=np.concatenate(
                [part.offsets + np.uint64(address - lowest) for address, part in zip(addresses, parts, strict=True)]
            ),
            data=array_from_pointer(lowest, (behind - lowest,), "|u1", read_only=True),
            class_names=first.class_names,
            checksums=None,
            parts=tuple(parts),
            starts=np.cumsum([0, *map(len, parts)]),
            first_pages=np.cumsum([0, *pages[:-1]]),
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _PER_SAMPLE},
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """The parts' paths."""
        return tuple(part.path for part in self.parts)

    def pages(self, indices: np.ndarray) -> np.ndarray:
        """On which page each sample lies, counted through all parts."""
        files, offsets, _ = self.regions(indices)
        page_sizes = np.array([part.page_size for part in self.parts], np.uint64)
        pages: np.ndarray = self.first_pages[files] + (offsets // page_sizes[files]).astype(np.int64)
        return pages

    def regions(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where samples lie: the number of the file, offset and size (bytes)."""
        files = np.searchsorted(self.starts, indices, side="right") - 1
        lowest = np.uint64(self.data.__array_interface__["data"][0])
        bases = np.array([part.data.__array_interface__["data"][0] for part in self.parts], np.uint64) - lowest
        return files, self.offsets[indices] - bases[files], self.sizes[indices]

    def image_bytes(self, index: int) -> np.ndarray:
        """The stored bytes of a sample's image: a uint8 view of the mapped file."""
        part, number = self._part(index)
        return part.image_bytes(number)

    def page_matches(self, index: int) -> bool | None:
        """Whether the page that a sample's image lies on is as it was written; None where no sidecar tells."""
        part, number = self._part(index)
        return part.page_matches(number)

    def _part(self, index: int) -> tuple[BetonFile, int]:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[number], index - int(self.starts[number])

    def __reduce__(self) -> tuple[Any, ...]:
        return open_betons, (self.files,)
