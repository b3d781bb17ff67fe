"""Parquet files of images and labels, as Hugging Face ``datasets`` stores them.

A row group can only be read as a whole: the images in one are a block (see BlockSource), and the last few
blocks that a process has read stay in memory.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rebar.errors import RebarError
from rebar.sources.folder import as_synsets

IMAGE_COLUMNS = ("image", "img", "jpg", "image")
LABEL_COLUMNS = ("label", "labels", "cls", "fine_label", "class")
BLOCKS_KEPT = 4


class Parquet:
    """The rows of Parquet files, in their order.

    The images' column holds bytes, or Hugging Face's struct of ``bytes`` and ``path``; the labels' integers, whose
    names Hugging Face's metadata tells, or text. Raises RebarError where files cannot be read or lack such columns.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._open_blocks: OrderedDict[int, Any] = OrderedDict()
        groups: list[tuple[int, int]] = []
        lengths: list[int] = []
        found: list[Any] = []
        names: list[str] | None = None
        for number, path in enumerate(self.files):
            with _open(path) as file:
                self._image, label, of_struct = _columns(path, file.schema_arrow)
                self._of_struct = of_struct
                names = names or _class_names(file.schema_arrow, label)
                groups += [(number, group) for group in range(file.num_row_groups)]
                lengths += [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                found += _read(path, file.read, columns=[label]).column(0).to_pylist()
        if not found:
            raise RebarError(f"{self.files[0]}: holds no rows")
        self.class_names, self._labels = _number(self.files[0], found, names)
        self._groups = np.array(groups, np.int32)
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._file_starts = self._starts[np.searchsorted(self._groups[:, 0], np.arange(len(self.files)))]

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def blocks(self) -> np.ndarray:
        """int64, the number of each image's row group."""
        return np.repeat(np.arange(len(self._groups)), np.diff(self._starts))

    def label(self, index: int) -> int:
        """The number of the image's class."""
        return int(self._labels[index])

    def read(self, index: int) -> bytes:
        """The image's bytes."""
        block = int(np.searchsorted(self._starts, index, side="right")) - 1
        if block not in self._open_blocks:
            while len(self._open_blocks) >= BLOCKS_KEPT:
                self._open_blocks.popitem(last=False)
            self._open_blocks[block] = self._read_block(block)
        self._open_blocks.move_to_end(block)
        content = self._open_blocks[block][index - int(self._starts[block])].as_py()
        if content is None:
            raise OSError("the row has no image's bytes")
        return bytes(content)

    def name(self, index: int) -> str:
        """The file, and the row in it."""
        block = int(np.searchsorted(self._starts, index, side="right")) - 1
        number = self._groups[block][0]
        return f"{self.files[number]}: row {index - int(self._file_starts[number])}"

    def _read_block(self, block: int) -> Any:
        number, group = (int(value) for value in self._groups[block])
        try:
            with _open(self.files[number]) as file:
                column = _read(self.files[number], file.read_row_group, group, columns=[self._image]).column(0)
        except RebarError as error:  # sources raise OSError for what cannot be read
            raise OSError(str(error)) from None
        column = column.combine_chunks()
        return column.field("bytes") if self._of_struct else column

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_blocks": OrderedDict()}


def count_rows(path: Path) -> int:
    """The number of rows of a file, by its last bytes. Raises RebarError."""
    with _open(path) as file:
        return int(file.metadata.num_rows)


def _open(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise RebarError(f"{path}: reading Parquet takes pyarrow: pip install pyarrow") from None
    try:
        return ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise RebarError(f"{path}: is no Parquet file, or is cut short ({error}); download or copy it again") from None


def _read(path: Path, read: Any, *arguments: Any, **options: Any) -> Any:
    import pyarrow

    try:
        return read(*arguments, **options, use_threads=False)
    except (OSError, pyarrow.ArrowException) as error:
        raise RebarError(f"{path}: is damaged ({error}); download or copy it again") from None


def _columns(path: Path, schema: Any) -> tuple[str, str, bool]:
    """The names of the images' and the labels' columns, and whether an image is a struct with ``bytes``."""
    import pyarrow.types as types

    for name in IMAGE_COLUMNS:
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        of_struct = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if of_struct or types.is_binary(kind) or types.is_large_binary(kind):
            for label in LABEL_COLUMNS:
                if label in schema.names:
                    return name, label, of_struct
    raise RebarError(
        f"{path}: has no columns of images and labels, only {', '.join(schema.names)}; expected the bytes of a "
        f"image in one of {', '.join(IMAGE_COLUMNS)}, its class in one of {', '.join(LABEL_COLUMNS)}"
    )


def _class_names(schema: Any, label: str) -> list[str] | None:
    """The names that Hugging Face's metadata gives the labels."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return as_synsets([str(name) for name in features[label]["names"]])
    except (KeyError, TypeError, ValueError):
        return None


def _number(path: Path, found: Sequence[Any], names: list[str] | None) -> tuple[list[str], np.ndarray]:
    """Class names and int32 labels, from numbers or text."""
    if all(isinstance(value, str) for value in found):
        texts = sorted(set(found))
        numbers = {name: number for number, name in enumerate(texts)}
        return texts, np.array([numbers[value] for value in found], np.int32)
    if not all(isinstance(value, int) for value in found):
        raise RebarError(f"{path}: some labels are missing, or are neither whole numbers nor text")
    labels = np.array(found, np.int64)
    if labels.min() < 0:
        raise RebarError(f"{path}: has the label {labels.min()}, which is none: a test split without labels, perhaps")
    names = names or [str(number) for number in range(int(labels.max()) + 1)]
    if labels.max() >= len(names):
        raise RebarError(f"{path}: has the label {labels.max()}, but its metadata names {len(names)} classes")
    return names, labels.astype(np.int32)
