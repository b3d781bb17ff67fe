"""Images anywhere in this process's memory, as compiled code hands them over: by address.

Our decoders as FFCV operations: they take the place of FFCV's in anybody's ``ffcv.loader.Loader``.

FFCV tells an operation which samples to decode, and neither the epoch nor a seed. So an operation counts
how often it has met each sample, which is the epoch in all but name, and is seeded itself: the crops are a
function of (seed, visits, sample), whatever the number of threads.

Importing this module imports FFCV. :class:`rebar.loading.Loader` takes these operations too.
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

from rebar.loading import crops
from rebar.loading.crops import Crops
from rebar.loading.decode import CorruptSampleError, CorruptSampleWarning, DecoderPool
from rebar.loading.ffcv.graph import ffcv_compiler
from rebar.loading.prefetch import shares
from rebar.loading.rng import RngKeys
from rebar.storage.array_from_pointer import array_from_pointer

COLUMNS = ("sample", "address", "size", "mode", "height", "width")
"""What a row of the table says, all int64."""

_IN_MEMORY = Path("memory")
_decoders = DecoderPool(keep=256)


@dataclass(frozen=True)
class InMemoryImages:
    """Images that are decoded in the order they lie in; ``samples`` are their numbers in the file."""

    samples: NDArray[np.int64]
    data: NDArray[np.uint8]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    modes: NDArray[np.uint8]
    heights: NDArray[np.uint16]
    widths: NDArray[np.uint16]
    path: Path = _IN_MEMORY

    def __len__(self) -> int:
        return len(self.samples)

    @staticmethod
    def of_table(address: int, count: int) -> "InMemoryImages":
        """The images that a table of COLUMNS at ``address`` describes; their memory outlives this object."""
        table = array_from_pointer(address, (count, len(COLUMNS)), "<i8", read_only=True)
        samples, addresses, sizes, modes, heights, widths = np.ascontiguousarray(table.T)
        first, end = int(addresses.min()), int((addresses + sizes).max())
        return InMemoryImages(
            samples=samples,
            # All memory from the first to the last; only what offsets and sizes name is looked at.
            data=array_from_pointer(first, (end - first,), "|u1", read_only=True),
            offsets=(addresses - first).astype(np.uint64),
            sizes=sizes.astype(np.uint64),
            modes=modes.astype(np.uint8),
            heights=heights.astype(np.uint16),
            widths=widths.astype(np.uint16),
        )

    @staticmethod
    def array_from_pointer(address: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Somebody's uint8 memory to write to."""
        return array_from_pointer(address, shape, "|u1", read_only=False)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """One pool a process and size: FFCV never says when an operation ends."""
    return ThreadPoolExecutor(count, thread_name_prefix="rebar-operation")


def decode_on_threads(
    images: InMemoryImages, crops: Crops, out: NDArray[np.uint8], num_threads: int
) -> list[tuple[int, CorruptSampleError]]:
    """Decode everything into ``out``; returns the places that could not be filled, each with the reason."""
    parts = shares(len(images), num_threads)
    if len(parts) == 1:
        return _decode_share(images, crops, out, parts[0])
    decoded: Any = _threads(num_threads).map(lambda share: _decode_share(images, crops, out, share), parts)
    return [failure for failures in decoded for failure in failures]


def _decode_share(
    images: InMemoryImages, crops: Crops, out: NDArray[np.uint8], share: slice
) -> list[tuple[int, CorruptSampleError]]:
    height, width = int(images.heights[share].max()), int(images.widths[share].max())
    indices = np.arange(share.start, share.stop)
    some = Crops(crops.boxes[share], crops.flips[share])
    with _decoders.borrow(height, width) as decoder:
        return [(share.start + slot, error) for slot, error in decoder.decode(images, indices, some, out[share])]


Compiler = ffcv_compiler()  # before anything else of FFCV: torch keeps its threads

from ffcv.fields.rgb_image import SimpleRGBImageDecoder  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 5)


class _CropDecoder(SimpleRGBImageDecoder):  # FFCV takes nothing else for a decoder of images
    """Decodes one crop an image; a corrupt image becomes black, is warned of and kept in ``corrupt_samples``."""

    def __init__(self, output_size: Sequence[int], flip_prob: float, seed: int) -> None:
        super().__init__()
        self.output_size = tuple(output_size)
        self.flip_prob = flip_prob
        self.seed = seed
        self.epoch: int | None = None
        """Set it to draw the crops of an epoch of your choice; None: the number of earlier visits."""
        self.corrupt_samples: dict[int, str] = {}
        self._visits = np.zeros(0, np.int64)
        self._callback = _CALLBACK(self._decode_at)  # compiled code calls it; it must live as long
        self._num_threads = 1

    def cropper(self) -> crops.Cropper:
        """Which part of an image to take."""
        raise NotImplementedError

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        """FFCV's question for the shape that comes out, and for memory: a table beside the images."""
        shape = (int(self.output_size[0]), int(self.output_size[1]), 3)
        if len(self._visits) != len(self.metadata):
            self._visits = np.zeros(len(self.metadata), np.int64)
        images = AllocationQuery(shape, np.dtype("<u1"))
        return replace(previous_state, jit_mode=True, shape=shape, dtype=np.dtype("<u1")), (
            images,
            AllocationQuery((len(COLUMNS),), np.dtype("<i8")),
        )

    def generate_code(self) -> Callable[..., Any]:
        """FFCV's question for code to compile: it finds the images, and calls back to have them decoded."""
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
                raise RuntimeError("rebar could not decode this batch; the reason was printed above")
            return destination[:count]

        return decode

    def _decode_at(self, count: int, table_address: int, out_address: int, height: int, width: int) -> int:
        """What compiled code calls: no exception passes through it, so a number says whether all went well."""
        if count == 0:
            return 0
        try:
            self._decode(InMemoryImages.of_table(table_address, count), out_address, (height, width))
        except Exception as error:
            warnings.warn(f"decoding failed: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)
            return 1
        return 0

    def _decode(self, images: InMemoryImages, out_address: int, size: tuple[int, int]) -> None:
        boxes = np.empty((len(images), 4), np.int64)
        flips = np.empty(len(images), np.bool_)
        visits = self._visits[images.samples]
        self._visits[images.samples] += 1
        epochs = visits if self.epoch is None else np.full_like(visits, self.epoch)
        for epoch in np.unique(epochs):
            some = np.flatnonzero(epochs == epoch)
            keys = RngKeys(self.seed, int(epoch), images.samples[some])
            heights, widths = (sides[some].astype(np.int64) for sides in (images.heights, images.widths))
            chosen = self.cropper().crops(heights, widths, keys)
            boxes[some], flips[some] = chosen.boxes, chosen.flips
        out = images.array_from_pointer(out_address, (len(images), *size, 3))
        for slot, error in decode_on_threads(images, crops.Crops(boxes, flips), out, self._num_threads):
            out[slot] = 0
            self._report(int(images.samples[slot]), error.reason)

    def _report(self, sample: int, reason: str) -> None:
        if sample not in self.corrupt_samples:
            self.corrupt_samples[sample] = reason
            warnings.warn(
                f"sample {sample} cannot be decoded and is black: {reason}", CorruptSampleWarning, stacklevel=2
            )


class RandomResizedCrop(_CropDecoder):
    """In place of FFCV's RandomResizedCropRGBImageDecoder and RandomHorizontalFlip, in one step.

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
        """Which part of an image to take."""
        return crops.RandomResizedCrop(self.scale, self.ratio, self.flip_prob)


class CenterCrop(_CropDecoder):
    """In place of FFCV's CenterCropRGBImageDecoder. ``output_size`` is (height, width) in pixels."""

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
        """Which part of an image to take."""
        return crops.CenterCrop(self.ratio, self.flip_prob)
