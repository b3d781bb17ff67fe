"""Parquet files and Arrow folders of images and labels, as Hugging Face's ``datasets`` stores them. Needs pyarrow.

A row group of a Parquet file can only be read completely. Its images form a block (see
:class:`rebar.beton.images.BlockSource`), and each process caches the most recently used blocks.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rebar.errors import RebarError
from rebar.sources.labels import parse_class, to_synsets
from rebar.sources.layout import index_classes

IMAGE_COLUMNS = ("image", "img", "jpg", "picture")
LABEL_COLUMNS = ("label", "labels", "cls", "fine_label", "class")
CACHED_BLOCKS = 4
STATE_FILE = "state.json"
"""Names the Arrow files of a folder. A ``DatasetDict`` has a folder per split."""


class _Rows:
    """Rows with an image and a label."""

    class_names: Sequence[str]
    _labels: np.ndarray

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """Return the label of an image."""
        return int(self._labels[index])


class ParquetFiles(_Rows):
    """The rows of Parquet files, in order.

    The image column contains bytes, or Hugging Face's struct of ``bytes`` and ``path``. The label column contains
    integers, named by Hugging Face's metadata, or text. Raises RebarError if a file cannot be read or has no such
    columns.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._cache: OrderedDict[int, Any] = OrderedDict()
        groups: list[tuple[int, int]] = []
        lengths: list[int] = []
        labels: list[Any] = []
        names: list[str] | None = None
        for number, path in enumerate(self.files):
            with _open(path) as file:
                self._image, label, self._is_struct = _find_columns(path, file.schema_arrow)
                found = _read_class_names(file.schema_arrow, label)
                _check_equal_names(number, path, found, names)
                names = found
                groups += [(number, group) for group in range(file.num_row_groups)]
                lengths += [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                labels += _read(path, file.read, columns=[label]).column(0).to_pylist()
        if not labels:
            raise RebarError(f"{self.files[0]}: contains no rows. Pass files with images.", code="source-empty")
        self.class_names, self._labels = _parse_labels(self.files[0], labels, names)
        self._groups = np.array(groups, np.int32)
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._file_starts = self._starts[np.searchsorted(self._groups[:, 0], np.arange(len(self.files)))]

    @property
    def blocks(self) -> np.ndarray:
        """The number of each image's row group, int64 ``[n]``."""
        return np.repeat(np.arange(len(self._groups)), np.diff(self._starts))

    def read(self, index: int) -> bytes:
        """Return the bytes of an image. They are empty if the row has no image. Raises OSError."""
        block = self._block(index)
        if block not in self._cache:
            while len(self._cache) >= CACHED_BLOCKS:
                self._cache.popitem(last=False)
            self._cache[block] = self._read_block(block)
        self._cache.move_to_end(block)
        content = self._cache[block][index - int(self._starts[block])].as_py()
        return bytes(content or b"")

    def name(self, index: int) -> str:
        """Return the path of the file and the row number within it."""
        number = self._groups[self._block(index)][0]
        return f"{self.files[number]}: row {index - int(self._file_starts[number])}"

    def _block(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def _read_block(self, block: int) -> Any:
        number, group = (int(value) for value in self._groups[block])
        try:
            with _open(self.files[number]) as file:
                column = _read(self.files[number], file.read_row_group, group, columns=[self._image]).column(0)
        except RebarError as error:  # Source.read() raises OSError
            raise OSError(str(error)) from None
        column = column.combine_chunks()
        return column.field("bytes") if self._is_struct else column

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}


def _check_equal_names(number: int, path: Path, found: list[str] | None, names: list[str] | None) -> None:
    """Raise RebarError if the class names of file ``number`` differ from those of the files before it."""
    if number and found != names:
        raise RebarError(
            f"{path}: its class names differ from those of the files before it, so labels have different meanings. "
            "Pass files of one dataset.",
            code="parquet-label-invalid",
        )


def count_rows(path: Path) -> int:
    """Return the number of rows from a file's footer. Raises RebarError."""
    with _open(path) as file:
        return int(file.metadata.num_rows)


def _open(path: Path) -> Any:
    """Open a Parquet file."""
    pyarrow = _import_pyarrow(path)
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, "a Parquet file", error) from None


def _import_pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise RebarError(
            f"{path}: reading this file requires pyarrow. Run: pip install pyarrow", code="source-package-missing"
        ) from None
    return pyarrow


def _unreadable(path: Path, kind: str, error: Exception) -> RebarError:
    return RebarError(
        f"{path} is not {kind}, or is truncated ({error}). Download or copy it again.", code="parquet-invalid"
    )


def _read(path: Path, read: Any, *arguments: Any, **options: Any) -> Any:
    import pyarrow

    try:
        return read(*arguments, **options, use_threads=False)
    except (OSError, pyarrow.ArrowException) as error:
        raise RebarError(f"{path} is damaged ({error}). Download or copy it again.", code="parquet-invalid") from None


def _find_columns(path: Path, schema: Any) -> tuple[str, str, bool]:
    """Return the names of the image and label columns, and whether images are structs with a field ``bytes``.

    Raises RebarError if there are none.
    """
    import pyarrow.types as types

    images, labels = ([name for name in names if name in schema.names] for names in (IMAGE_COLUMNS, LABEL_COLUMNS))
    for kind, found, names in (("image", images, IMAGE_COLUMNS), ("label", labels, LABEL_COLUMNS)):
        if not found:
            raise _columns_error(path, f"no {kind} column among {', '.join(schema.names)}", "Name it", names)
    for name in images:
        dtype = schema.field(name).type
        if _is_binary(dtype):
            return name, labels[0], False
        field = dtype.get_field_index("bytes") if types.is_struct(dtype) else -1
        if field >= 0 and _is_binary(dtype[field].type):
            return name, labels[0], True
    raise _columns_error(
        path,
        f"column {images[0]} has type {schema.field(images[0]).type}, which does not contain the bytes of images",
        "Store the content of the image files instead of their paths, text or pixels, as",
        ("binary", "struct<bytes: binary>"),
    )


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _columns_error(path: Path, problem: str, fix: str, names: Sequence[str]) -> RebarError:
    return RebarError(f"{path}: {problem}. {fix} {' or '.join(names)}.", code="parquet-columns-missing")


def _read_class_names(schema: Any, label: str) -> list[str] | None:
    """Return the class names in Hugging Face's metadata, if there are any."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return to_synsets([str(name) for name in features[label]["names"]])
    except (KeyError, TypeError, ValueError):
        return None


def _parse_labels(path: Path, values: Sequence[Any], names: list[str] | None) -> tuple[list[str], np.ndarray]:
    """Return class names and labels (int32) for a label column of numbers or names. Raises RebarError."""
    try:
        classes = {value: parse_class(value) for value in set(values)}
    except (ValueError, TypeError) as error:
        raise _label_error(path, f"a label {error}; test splits often have no labels") from None
    numbers = [value for value in classes.values() if isinstance(value, int)]
    if not numbers:
        class_names = sorted({str(value) for value in classes.values()})
        return class_names, index_classes([classes[value] for value in values], class_names)
    if len(numbers) < len(classes):
        raise _label_error(path, "some labels are numbers, others are names")
    names = names or [str(number) for number in range(max(numbers) + 1)]
    if max(numbers) >= len(names):
        raise _label_error(path, f"label {max(numbers)} is out of range: the metadata names {len(names)} classes")
    return names, np.array([classes[value] for value in values], np.int32)


def _label_error(path: Path, problem: str) -> RebarError:
    return RebarError(f"{path}: {problem}. Pass files of a labeled split.", code="parquet-label-invalid")


class ArrowFolder(_Rows):
    """The rows of the Arrow files of a folder, in order.

    Columns are those of :class:`ParquetFiles`. Each process maps the files into memory when it reads its first image.
    Raises RebarError if a file cannot be read or has no such columns.
    """

    def __init__(self, folder: Path) -> None:
        self.files = _list_files(folder)
        self._columns: dict[int, Any] = {}
        ends: list[int] = []
        labels: list[Any] = []
        names: list[str] | None = None
        for number, path in enumerate(self.files):
            table = _open_arrow(path)
            self._image, label, self._is_struct = _find_columns(path, table.schema)
            found = _read_class_names(table.schema, label)
            _check_equal_names(number, path, found, names)
            names = found
            labels += table.column(label).to_pylist()
            ends.append(len(labels))
        if not labels:
            raise RebarError(f"{folder}: contains no rows. Use a dataset with images.", code="source-empty")
        self.class_names, self._labels = _parse_labels(folder, labels, names)
        self._ends = np.array(ends)

    def read(self, index: int) -> bytes:
        """Return the bytes of an image. They are empty if the row has no image. Raises OSError."""
        number, row = self._find(index)
        if number not in self._columns:
            try:
                self._columns[number] = _open_arrow(self.files[number]).column(self._image)
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
        return [folder / entry["filename"] for entry in json.loads(path.read_text())["_data_files"]]
    except FileNotFoundError:
        text = f"{folder}: contains no {STATE_FILE}. Use a folder that save_to_disk has written."
        raise RebarError(text, code="source-not-found") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RebarError(
            f"{path} does not name the files of a dataset ({error!r}). Copy the folder again.", code="parquet-invalid"
        ) from None


def _open_arrow(path: Path) -> Any:
    """Return the table in an Arrow file. Its memory is that of the mapped file."""
    pyarrow = _import_pyarrow(path)
    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, "an Arrow file", error) from None
