"""Folders of Arrow files, as ``save_to_disk`` of Hugging Face's ``datasets`` writes them. Read with pyarrow only."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rebar.errors import RebarError
from rebar.sources.parquet import check_equal_names, find_columns, parse_labels, read_class_names

STATE_FILE = "state.json"
"""Names the Arrow files of a folder. A ``DatasetDict`` has a folder per split."""


class ArrowFolder:
    """The rows of the Arrow files of a folder, in order.

    Columns are those of :class:`rebar.sources.parquet.ParquetFiles`. Each process maps the files into memory when it
    reads its first image. Raises RebarError if a file cannot be read or has no such columns.
    """

    def __init__(self, folder: Path) -> None:
        self.files = _list_files(folder)
        self._columns: dict[int, Any] = {}
        ends: list[int] = []
        labels: list[Any] = []
        names: list[str] | None = None
        for number, path in enumerate(self.files):
            table = _open(path)
            self._image, label, self._is_struct = find_columns(path, table.schema)
            found = read_class_names(table.schema, label)
            check_equal_names(number, path, found, names)
            names = found
            labels += table.column(label).to_pylist()
            ends.append(len(labels))
        if not labels:
            raise RebarError(f"{folder}: contains no rows. Give a dataset with images.", code="source-empty")
        self.class_names, self._labels = parse_labels(folder, labels, names)
        self._ends = np.array(ends)

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """Return the label of an image."""
        return int(self._labels[index])

    def read(self, index: int) -> bytes:
        """Return the bytes of an image. They are empty if the row has no image. Raises OSError."""
        number, row = self._find(index)
        if number not in self._columns:
            try:
                self._columns[number] = _open(self.files[number]).column(self._image)
            except RebarError as error:  # Source.read() raises OSError
                raise OSError(str(error)) from None
        content = self._columns[number][row].as_py()
        if self._is_struct:
            content = (content or {}).get("bytes")
        return bytes(content or b"")

    def name(self, index: int) -> str:
        """Return the path of the file and the row number within it."""
        number, row = self._find(index)
        return f"{self.files[number]}: row {row}"

    def _find(self, index: int) -> tuple[int, int]:
        """Return the number of the file and the row of an image."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (int(self._ends[number - 1]) if number else 0)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": {}}


def _list_files(folder: Path) -> Sequence[Path]:
    path = folder / STATE_FILE
    try:
        files = [folder / entry["filename"] for entry in json.loads(path.read_text())["_data_files"]]
    except FileNotFoundError:
        raise RebarError(
            f"{folder}: contains no {STATE_FILE}. Give a folder that save_to_disk has written.",
            code="source-not-found",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise RebarError(
            f"{path} does not name the files of a dataset ({error!r}). Copy the folder again.", code="parquet-invalid"
        ) from None
    if not files:
        raise RebarError(f"{folder}: contains no rows. Give a dataset with images.", code="source-empty")
    return files


def _open(path: Path) -> Any:
    """Return the table in a file. Its memory is that of the mapped file."""
    try:
        import pyarrow
    except ImportError:
        raise RebarError(
            f"{path}: reading Arrow files requires pyarrow. Run: pip install pyarrow", code="source-package-missing"
        ) from None
    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
    except (OSError, pyarrow.ArrowException) as error:
        raise RebarError(
            f"{path} is not an Arrow file, or is truncated ({error}). Download or copy it again.",
            code="parquet-invalid",
        ) from None
