"""Rebar's decoders as FFCV operations, for use in FFCV's own loader. Importing this module imports FFCV.

FFCV passes neither the epoch nor a seed to an operation. A decoder therefore counts its visits to each sample, which
equals the epoch, and takes a seed itself: crops are a function of (seed, visits, sample), for any number of threads.
"""

import ctypes
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebar.beton.reader import array_from_pointer
from rebar.loading import crops
from rebar.loading.decode import CorruptSampleError, CorruptSampleWarning, DecoderPool
from rebar.loading.ffcv.graph import ffcv_compiler
from rebar.loading.prefetch import split_slices
from rebar.loading.rng import RngKeys

Compiler = ffcv_compiler()  # before other imports from FFCV: it preserves torch's number of threads

from ffcv.fields.rgb_image import SimpleRGBImageDecoder  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402

_COLUMNS = ("sample", "address", "size", "mode", "height", "width")
"""The columns of the table that compiled code fills, int64, one row per image."""

_decoders = DecoderPool(capacity=256)


@dataclass(frozen=True)
class InMemoryImages:
    """Images at addresses in this process's memory; a :class:`rebar.beton.images.StoredImages`.

    ``samples`` are their indices in the file.
    """

    samples: NDArray[np.int64]
    data: NDArray[np.uint8]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    modes: NDArray[np.uint8]
    heights: NDArray[np.uint16]
    widths: NDArray[np.uint16]
    path: Path = Path("memory")

    def __len__(self) -> int:
        return len(self.samples)

    @staticmethod
    def from_table(address: int, count: int) -> "InMemoryImages":
        """Return the images described by the table at ``address``. Their memory must outlive the returned object."""
        table = array_from_pointer(address, (count, len(_COLUMNS)), "<i8", read_only=True)
        samples, addresses, sizes, modes, heights, widths = np.ascontiguousarray(table.T)
        first, end = int(addresses.min()), int((addresses + sizes).max())
        return InMemoryImages(
            samples=samples,
            # Spans everything from the first image to the last; only the bytes of the images are accessed.
            data=array_from_pointer(first, (end - first,), "|u1", read_only=True),
            offsets=(addresses - first).astype(np.uint64),
            sizes=sizes.astype(np.uint64),
            modes=modes.astype(np.uint8),
            heights=heights.astype(np.uint16),
            widths=widths.astype(np.uint16),
        )


@cache
def _thread_pool(num_threads: int) -> ThreadPoolExecutor:
    """Return the process's thread pool of this size. It is never closed, since FFCV does not signal the end of use."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="rebar-operation")


def _decode_on_threads(
    images: InMemoryImages, chosen: crops.Crops, out: NDArray[np.uint8], num_threads: int
) -> list[tuple[int, CorruptSampleError]]:
    """Decode all images into ``out``; return the rows of corrupt samples with their errors."""

    def decode_part(part: slice) -> list[tuple[int, CorruptSampleError]]:
        height, width = int(images.heights[part].max()), int(images.widths[part].max())
        indices = np.arange(part.start, part.stop)
        with _decoders.borrow(height, width) as decoder:
            failures = decoder.decode(images, indices, chosen[part], out[part])
        return [(part.start + row, error) for row, error in failures]

    parts = split_slices(len(images), num_threads)
    if len(parts) == 1:
        return decode_part(parts[0])
    return [failure for failures in _thread_pool(num_threads).map(decode_part, parts) for failure in failures]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 5)


class _CropDecoder(SimpleRGBImageDecoder):  # FFCV requires an image decoder to have this base class
    """Decodes one crop per image. A corrupt image becomes black, with a warning and an entry in ``corrupt_samples``.

    An exception instead would make FFCV's loader hang.
    """

    def __init__(self, output_size: Sequence[int], flip_prob: float, seed: int) -> None:
        super().__init__()
        self.output_size = tuple(output_size)
        self.flip_prob = flip_prob
        self.seed = seed
        self.epoch: int | None = None
        """The epoch whose crops to draw; None: the number of previous visits to the sample."""
        self.corrupt_samples: dict[int, str] = {}
        self._visits = np.zeros(0, np.int64)
        self._callback = _CALLBACK(self._decode_at)  # called by compiled code, so this reference must stay alive
        self._num_threads = 1

    def cropper(self) -> crops.Cropper:
        """Return the cropper with the current settings."""
        raise NotImplementedError

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        """Return the output's shape and dtype, and request memory for the images and for the table (FFCV's hook)."""
        shape = (int(self.output_size[0]), int(self.output_size[1]), 3)
        if len(self._visits) != len(self.metadata):
            self._visits = np.zeros(len(self.metadata), np.int64)
        images = AllocationQuery(shape, np.dtype("<u1"))
        return replace(previous_state, jit_mode=True, shape=shape, dtype=np.dtype("<u1")), (
            images,
            AllocationQuery((len(_COLUMNS),), np.dtype("<i8")),
        )

    def generate_code(self) -> Callable[..., Any]:
        """Return the code for FFCV to compile: it fills the table, then calls back into Python to decode."""
        self._num_threads = Compiler.num_threads
        read, call_back = self.memory_read, self._callback

        def decode(batch_indices, my_storage, metadata, storage_state):  # type: ignore[no-untyped-def]
            destination, table = my_storage
            count = len(batch_indices)
            for i in range(count):
                field = metadata[batch_indices[i]]
                stored = read(field["data_ptr"], storage_state)
                table[i, 0] = batch_indices[i]
                table[i, 1] = stored.ctypes.data
                table[i, 2] = stored.size
                table[i, 3] = field["mode"]
                table[i, 4] = field["height"]
                table[i, 5] = field["width"]
            shape = destination.shape
            if call_back(count, table.ctypes.data, destination.ctypes.data, shape[1], shape[2]) != 0:
                raise RuntimeError("Rebar could not decode this batch; see the warning above for the reason")
            return destination[:count]

        return decode

    def _decode_at(self, count: int, table_address: int, out_address: int, height: int, width: int) -> int:
        """Decode for compiled code, through which no exception may pass: return 0 on success, otherwise 1."""
        if count == 0:
            return 0
        try:
            out = array_from_pointer(out_address, (count, height, width, 3), "|u1", read_only=False)
            self._decode(InMemoryImages.from_table(table_address, count), out)
        except Exception as error:
            warnings.warn(f"decoding failed: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)
            return 1
        return 0

    def _decode(self, images: InMemoryImages, out: NDArray[np.uint8]) -> None:
        boxes = np.empty((len(images), 4), np.int64)
        flips = np.empty(len(images), np.bool_)
        visits = self._visits[images.samples]
        self._visits[images.samples] += 1
        epochs = visits if self.epoch is None else np.full_like(visits, self.epoch)
        for epoch in np.unique(epochs):
            rows = np.flatnonzero(epochs == epoch)
            keys = RngKeys(self.seed, int(epoch), images.samples[rows])
            heights, widths = (sides[rows].astype(np.int64) for sides in (images.heights, images.widths))
            chosen = self.cropper().crops(heights, widths, keys)
            boxes[rows], flips[rows] = chosen.boxes, chosen.flips
        for row, error in _decode_on_threads(images, crops.Crops(boxes, flips), out, self._num_threads):
            out[row] = 0
            self._record(int(images.samples[row]), error.reason)

    def _record(self, sample: int, reason: str) -> None:
        if sample not in self.corrupt_samples:
            self.corrupt_samples[sample] = reason
            warnings.warn(
                f"the image of sample {sample} {reason}. A black image replaces it.", CorruptSampleWarning, stacklevel=2
            )


class RandomResizedCrop(_CropDecoder):
    """Replaces FFCV's RandomResizedCropRGBImageDecoder and RandomHorizontalFlip.

    ``output_size`` is (height, width) in pixels, and may be changed between epochs.
    """

    def __init__(
        self,
        output_size: Sequence[int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip_prob: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(output_size, flip_prob, seed)
        self.scale = scale
        self.ratio = ratio

    def cropper(self) -> crops.Cropper:
        """Return the cropper with the current settings."""
        return crops.RandomResizedCrop(self.scale, self.ratio, self.flip_prob)


class CenterCrop(_CropDecoder):
    """Replaces FFCV's CenterCropRGBImageDecoder. ``output_size`` is (height, width) in pixels."""

    def __init__(
        self,
        output_size: Sequence[int],
        ratio: float = crops.IMAGENET_CENTER_RATIO,
        flip_prob: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(output_size, flip_prob, seed)
        self.ratio = ratio

    def cropper(self) -> crops.Cropper:
        """Return the cropper with the current settings."""
        return crops.CenterCrop(self.ratio, self.flip_prob)
