"""What the Loader asks of whoever makes its batches.

What a loader makes of images and labels: crops of which kind and size, and what comes after decoding.

Which fields a .beton has, of which types.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rebar.beton.format import (
    FIELD_DESCRIPTOR,
    HEADER,
    TYPE_IMAGE,
    TYPE_INT,
    VERSION,
    BetonError,
    choose_field,
    field_names,
)
from rebar.beton.reader import BetonFile
from rebar.errors import RebarError
from rebar.loading.crops import Cropper
from rebar.loading.prefetch import Wait

StartBatch = Callable[..., Wait[Any]]
"""Called with the threads and ``keys``, the RngKeys of a batch."""


class Regions(NamedTuple):
    """Parts of files: the file's number, int64, offset and size (bytes), uint64, each ``[n]``."""

    files: NDArray[np.int64]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]


class BatchSource(Protocol):
    """Makes batches of given samples; knows nothing of orders, ranks and positions."""

    @property
    def indices(self) -> NDArray[np.int64]:
        """The samples that there are."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read."""

    @property
    def page_size(self) -> int:
        """Of the files, bytes."""

    @property
    def whole_batches(self) -> bool:
        """Whether one thread makes a whole batch; else the threads share it."""

    @property
    def beton(self) -> BetonFile | None:
        """The file, where it was opened as one of images and labels."""

    @property
    def corrupt_samples(self) -> dict[int, str]:
        """What was replaced so far: sample to reason."""

    def begin_epoch(self, resolution: int | None) -> StartBatch:
        """How to start a batch of the coming epoch."""

    def finish(self, batches: Iterator[Any]) -> Iterator[Any]:
        """What is done with each batch in the consumer's thread."""

    def pages(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """On which page each sample lies, counted through all files."""

    def regions(self, indices: NDArray[np.int64]) -> Regions:
        """Where in the files samples lie."""


class Batch(NamedTuple):
    """``images`` uint8 ``[n, height, width, 3]`` RGB and ``labels`` int64 ``[n]``, in main memory."""

    images: torch.Tensor
    labels: torch.Tensor


class Plan(Protocol):
    """Asked anew when an epoch begins; ``device`` is where ``finish`` moves its tensors to."""

    @property
    def device(self) -> torch.device | None: ...

    def cropper(self) -> Cropper: ...

    def size(self, resolution: int | None) -> tuple[int, int]: ...

    def finish(self, batch: Batch) -> tuple[Any, ...]: ...


@dataclass(frozen=True)
class PlainPlan:
    """Crops as bytes, and labels: nothing comes after."""

    chosen: Cropper
    device: torch.device | None = None

    def cropper(self) -> Cropper:
        """The one that was chosen."""
        return self.chosen

    def size(self, resolution: int | None) -> tuple[int, int]:
        """A square of ``resolution`` pixels. Raises RebarError where none was given."""
        if resolution is None or resolution < 1:
            raise RebarError(
                f"resolution is {resolution}: give Loader(resolution=...) or epoch(..., resolution) pixels"
            )
        return resolution, resolution

    def finish(self, batch: Batch) -> Batch:
        """The batch itself."""
        return batch


def field_types(path: Path) -> dict[str, int]:
    """The type id of every field, in the file's order. Raises BetonError for what is no .beton file."""
    try:
        with path.open("rb") as file:
            (header,) = np.fromfile(file, HEADER, 1)
            descriptors = np.fromfile(file, FIELD_DESCRIPTOR, int(header["num_fields"]))
    except (OSError, ValueError):
        BetonFile.open(path)  # says what is wrong
        raise
    if header["version"] != VERSION:
        BetonFile.open(path)
        raise BetonError(f"{path}: is no .beton file of version {VERSION}")
    return dict(zip(field_names(descriptors), descriptors["type_id"].tolist(), strict=True))


def image_and_label(types: Mapping[str, int]) -> tuple[str | None, str | None]:
    """The fields that :class:`rebar.beton.BetonFile` reads: those called so, else the first of the type."""
    names, type_ids = list(types), list(types.values())
    chosen = (choose_field(names, type_ids, *wanted) for wanted in ((TYPE_IMAGE, "image"), (TYPE_INT, "label")))
    image, label = (None if number is None else names[number] for number in chosen)
    return image, label
