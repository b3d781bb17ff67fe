"""The two backends that produce a loader's batches, and the selection between them.

NativeBackend decodes images with rebar.jpeg; :class:`rebar.loading.ffcv.graph.FfcvBackend` runs FFCV's graph.
"""

import functools
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from rebar.beton.reader import BetonFile, BetonPaths, find_betons, open_betons
from rebar.errors import RebarError
from rebar.loading.crops import Cropper, Crops
from rebar.loading.decode import CorruptSampleError, CorruptSamples, DecoderPool, ImageDecoder, check_largest_size
from rebar.loading.ffcv.pipelines import field_types, image_and_label_fields, recognize
from rebar.loading.options import OnError
from rebar.loading.prefetch import Batch, BufferPool, GetResult, Lazy, SubmitBatch, on_device, split_slices
from rebar.loading.rng import RngKeys
from rebar.storage.page_cache import MappedFiles, Regions

Subset: TypeAlias = "Sequence[int] | NDArray[np.integer] | None"


class BatchSpec(Protocol):
    """Specifies how batches are made from images and labels. Read at the start of each epoch, so it may change."""

    @property
    def device(self) -> torch.device | None:
        """The device that :meth:`finish` moves its tensors to; None if it leaves them in main memory."""

    def cropper(self) -> Cropper:
        """Return the cropper for the next epoch."""

    def size(self, resolution: int | None) -> tuple[int, int]:
        """Return the images' (height, width) in pixels for the next epoch."""

    def finish(self, batch: Batch) -> tuple[Any, ...]:
        """Apply the operations after decoding and return the loader's output."""


@dataclass(frozen=True)
class CropSpec:
    """The BatchSpec of ``Loader(cropper=...)``: uint8 crops and labels."""

    crop: Cropper
    device: torch.device | None = None

    def cropper(self) -> Cropper:
        """Return the cropper."""
        return self.crop

    def size(self, resolution: int | None) -> tuple[int, int]:
        """Return ``(resolution, resolution)``. Raises RebarError if the resolution is missing or below 1."""
        if resolution is None or resolution < 1:
            raise RebarError(
                f"resolution: {resolution} is not a number of pixels. Set Loader(resolution=...) or call "
                "epoch(..., resolution).",
                code="loader-invalid-argument",
            )
        return resolution, resolution

    def finish(self, batch: Batch) -> Batch:
        """Return the batch unchanged."""
        return batch


class Backend(MappedFiles, Protocol):
    """Produces batches of given samples. The loader handles order, sharding and position."""

    indices: NDArray[np.int64]
    """The samples in use, int64 ``[n]``."""
    num_samples: int
    """The number of samples in the files."""

    @property
    def page_size(self) -> int:
        """The page size of the files in bytes."""

    @property
    def one_thread_per_batch(self) -> bool:
        """Whether a single thread produces a batch; otherwise all threads work on the same batch."""

    @property
    def beton(self) -> BetonFile | None:
        """The open beton; None if FFCV reads the file."""

    @property
    def corrupt_samples(self) -> dict[int, str]:
        """The corrupt samples replaced so far: index to reason."""

    def begin_epoch(self, resolution: int | None, *, num_workers: int, recompile: bool) -> SubmitBatch:
        """Return the function that starts the batches of the next epoch on ``num_workers`` threads."""

    def finish(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Process the batches in the consumer's thread."""

    def pages(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the page of each sample, numbered across all files."""


@dataclass(frozen=True)
class BackendOptions:
    """The arguments of :class:`rebar.loading.Loader` for the backends."""

    batch_size: int
    num_workers: int
    pool_capacity: int
    """Maximum number of idle batch buffers."""
    on_error: OnError
    pin_memory: bool


class NativeBackend:
    """Decodes batches of images and labels as a BatchSpec specifies. All threads work on the same batch."""

    one_thread_per_batch = False

    def __init__(self, beton: BetonFile, spec: BatchSpec, indices: NDArray[np.int64], options: BackendOptions) -> None:
        self.beton = beton
        self.indices = indices
        self.num_samples = beton.num_samples
        self.files = beton.files
        self.page_size = beton.page_size
        self.spec = spec
        self.pin_memory = options.pin_memory or (spec.device is not None and spec.device.type == "cuda")
        self._corruption = CorruptSamples(options.on_error)
        self.corrupt_samples = self._corruption.reasons
        self._buffers = BufferPool(options.pool_capacity)
        self._decoders = DecoderPool()
        self._max_size = int(beton.heights.max()), int(beton.widths.max())

    def begin_epoch(self, resolution: int | None, *, num_workers: int, recompile: bool) -> SubmitBatch:
        """Return the function that starts the batches of the next epoch; each is split over ``num_workers`` threads."""
        cropper, size = self.spec.cropper(), self.spec.size(resolution)
        return functools.partial(self._start, cropper=cropper, size=size, parts=num_workers)

    def finish(self, batches: Iterator[Batch]) -> Iterator[tuple[Any, ...]]:
        """Apply the operations after decoding; on a GPU, one batch ahead of the consumer."""
        return on_device(batches, self.spec.finish, self.spec.device)

    @property
    def mappings(self) -> tuple[mmap.mmap, ...]:
        """The memory mapping of each file."""
        return self.beton.mappings

    def pages(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the page of each sample, numbered across all files."""
        return self.beton.pages(indices)

    def regions(self, indices: NDArray[np.int64]) -> Regions:
        """Return the byte ranges of samples."""
        return Regions(*self.beton.regions(indices))

    def _start(
        self, threads: ThreadPoolExecutor, keys: RngKeys, *, cropper: Cropper, size: tuple[int, int], parts: int
    ) -> GetResult[Batch]:
        """Submit the decoding of a batch at ``size`` (height, width in pixels), in up to ``parts`` parts."""
        # The first thread to run allocates the buffer, so a batch that is still queued uses no memory.
        images = Lazy(functools.partial(self._empty_images, (len(keys), *size, 3)))
        labels = self.beton.labels[keys.indices]
        tasks = [
            threads.submit(self._decode_part, keys, cropper, images, labels, part)
            for part in split_slices(len(keys), parts)
        ]
        return functools.partial(self._wait, tasks, images, labels)

    def _empty_images(self, shape: tuple[int, ...]) -> torch.Tensor:
        if self.pin_memory:
            # torch's allocator reuses pinned memory once the copies to the device are complete.
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(self._buffers.take(int(np.prod(shape))).reshape(shape))

    def _wait(
        self, tasks: list[Future[list[CorruptSampleError]]], images: Lazy[torch.Tensor], labels: NDArray[np.int64]
    ) -> Batch:
        for task in tasks:
            self._corruption.record(task.result())
        tensor = torch.from_numpy(labels)
        return Batch(images.get(), tensor.pin_memory() if self.pin_memory else tensor)

    def _decode_part(
        self, keys: RngKeys, cropper: Cropper, images: Lazy[torch.Tensor], labels: NDArray[np.int64], part: slice
    ) -> list[CorruptSampleError]:
        """Decode a slice of a batch in this thread; return the errors of the replaced samples."""
        out, part_labels, part_keys = images.get().numpy()[part], labels[part], keys[part]
        with self._decoders.borrow(*self._max_size) as decoder:
            failures = decoder.decode(self.beton, part_keys.indices, self._crops(cropper, part_keys), out)
            for row, error in failures:
                substitute = self._substitute(decoder, cropper, part_keys, error, out[row : row + 1])
                part_labels[row] = self.beton.labels[substitute]
        return [error for _, error in failures]

    def _substitute(
        self,
        decoder: ImageDecoder,
        cropper: Cropper,
        keys: RngKeys,
        error: CorruptSampleError,
        out: NDArray[np.uint8],
    ) -> int:
        """Decode another sample in place of a corrupt one; return its index."""
        for index in self._corruption.substitutes(error, keys, self.indices):
            key = RngKeys(keys.seed, keys.epoch, np.array([index]))
            if not decoder.decode(self.beton, key.indices, self._crops(cropper, key), out):
                return int(index)
        raise error

    def _crops(self, cropper: Cropper, keys: RngKeys) -> Crops:
        heights, widths = (sides[keys.indices].astype(np.int64) for sides in (self.beton.heights, self.beton.widths))
        return cropper.crops(heights, widths, keys)


def open_backend(
    files: BetonPaths,
    cropper: Cropper | None,
    pipelines: Mapping[str, Any],
    custom_fields: Mapping[str, Any],
    indices: Subset,
    options: BackendOptions,
) -> Backend:
    """Open the native backend for a cropper or recognized pipelines, and FFCV's graph for other pipelines."""
    if cropper is not None:
        if pipelines or custom_fields:
            raise RebarError(
                "cropper cannot be combined with pipelines or custom_fields. Pass only one of them.",
                code="loader-invalid-argument",
            )
        return _open_native(files, CropSpec(cropper), indices, options)
    for argument, value in (("pipelines", pipelines), ("custom_fields", custom_fields)):
        if not isinstance(value, Mapping):
            raise RebarError(
                f"{argument}: {type(value).__name__} is not a dictionary. Pass one, keyed by the names of fields.",
                code="loader-invalid-argument",
            )
    paths = find_betons(files)
    types = field_types(paths[0])
    # The source of a PipelineSpec is a field, or an operation of another pipeline.
    sources = [getattr(pipeline, "source", name) for name, pipeline in pipelines.items()]
    _check_fields("pipelines", [source for source in sources if isinstance(source, str)], types, paths[0])
    _check_fields("custom_fields", custom_fields, types, paths[0])
    spec = recognize(pipelines, types) if not custom_fields else None
    if spec is not None:
        return _open_native(paths, spec, indices, options)
    if len(paths) > 1 or options.on_error != "raise":
        option = f"fname: {len(paths)} files" if len(paths) > 1 else f"on_error: {options.on_error!r}"
        raise RebarError(
            f"{option} is not supported if FFCV runs the pipelines. Use Loader(..., cropper=...) or the operations "
            "listed in docs/loader.md.",
            code="ffcv-unsupported",
        )
    if None not in image_and_label_fields(types) and not custom_fields:
        check_largest_size(BetonFile.open(paths[0]))  # opening it validates more than FFCV's reader
    from rebar.loading.ffcv.graph import FfcvBackend, FfcvFile

    file = FfcvFile.open(paths[0], custom_fields)
    return FfcvBackend(file, pipelines, check_subset(indices, file.num_samples), options)


def _open_native(files: BetonPaths, spec: BatchSpec, indices: Subset, options: BackendOptions) -> NativeBackend:
    beton = open_betons(files)
    return NativeBackend(beton, spec, check_subset(indices, beton.num_samples), options)


def _check_fields(argument: str, names: Iterable[Any], types: Mapping[str, int], path: Path) -> None:
    for name in names:
        if name not in types:
            raise RebarError(
                f"{argument}: {path} has no field {name!r}. Use one of its fields: {', '.join(types)}.",
                code="loader-invalid-argument",
            )


def check_subset(indices: Subset, num_samples: int) -> NDArray[np.int64]:
    """Return the indices as int64 ``[n]``; None means all samples. Raises RebarError if they are invalid."""
    if indices is None:
        return np.arange(num_samples)
    subset = np.asarray(indices)
    if subset.dtype == bool or not (np.issubdtype(subset.dtype, np.integer) and subset.ndim == 1 and len(subset)):
        raise RebarError(
            "indices: not a non-empty sequence of integers. Pass the indices of the samples to use.",
            code="loader-invalid-argument",
        )
    first, last = int(subset.min()), int(subset.max())
    if first < 0 or last >= num_samples:
        text = f"indices: {first} to {last} are out of range. Pass indices between 0 and {num_samples - 1}."
        raise RebarError(text, code="loader-invalid-argument")
    return subset.astype(np.int64)
