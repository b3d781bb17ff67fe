"""Several .beton files as one: the parts of a dataset that was written in shards."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rebar.beton.format import BetonError
from rebar.beton.reader import BetonFile
from rebar.foreign_memory import array_at

Files = str | Path | Sequence[str | Path]
"""A file; a pattern of shell wildcards, whose files are sorted by name; or files in the order given."""

_PER_SAMPLE = ("labels", "heights", "widths", "modes", "sizes")


def open_betons(files: Files) -> BetonFile:
    """Open one or several files as one dataset, its samples in the order of the files.

    Raises BetonError as :meth:`BetonFile.open` does, for a pattern that matches nothing, and for files that do not
    name the same classes.
    """
    paths = find_betons(files)
    return BetonFile.open(paths[0]) if len(paths) == 1 else JoinedBetons.join([BetonFile.open(path) for path in paths])


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
class JoinedBetons(BetonFile):
    """Files one behind the other. ``data`` spans the memory they are mapped to: only pictures' bytes are in it."""

    parts: tuple[BetonFile, ...]
    starts: np.ndarray
    """int64 [parts + 1], the first sample of every part, and the number of samples."""
    first_pages: np.ndarray
    """int64 [parts], the number of every part's first page."""

    @staticmethod
    def join(parts: Sequence[BetonFile]) -> "JoinedBetons":
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
        return JoinedBetons(
            path=first.path.with_name(f"{first.path.name} and {len(parts) - 1} more"),
            num_samples=sum(map(len, parts)),
            page_size=page_size,
            field_names=first.field_names,
            offsets=np.concatenate(
                [part.offsets + np.uint64(address - lowest) for address, part in zip(addresses, parts, strict=True)]
            ),
            data=array_at(lowest, (behind - lowest,), "|u1", read_only=True),
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
        """The stored bytes of a sample's picture: a uint8 view of the mapped file."""
        part, number = self._part(index)
        return part.image_bytes(number)

    def page_matches(self, index: int) -> bool | None:
        """Whether the page that a sample's picture lies on is as it was written; None where no sidecar tells."""
        part, number = self._part(index)
        return part.page_matches(number)

    def _part(self, index: int) -> tuple[BetonFile, int]:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[number], index - int(self.starts[number])

    def __reduce__(self) -> tuple[Any, ...]:
        return open_betons, (self.files,)
