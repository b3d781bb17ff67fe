"""Our decoders as FFCV operations: they take the place of FFCV's in anybody's ``ffcv.loader.Loader``.

FFCV tells an operation which samples to decode, and neither the epoch nor a seed. So an operation counts
how often it has met each sample, which is the epoch in all but name, and is seeded itself: the crops are a
function of (seed, visits, sample), whatever the number of threads.

Importing this module imports FFCV. :class:`rebar.loading.Loader` takes these operations too.
"""

import ctypes
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rebar.loading import crops
from rebar.loading.corruption import CorruptSampleWarning
from rebar.loading.ffcv_import import ffcv_compiler
from rebar.loading.memory_pictures import COLUMNS, MemoryPictures, decode_on_threads
from rebar.loading.randomness import SampleKeys

Compiler = ffcv_compiler()  # before anything else of FFCV: torch keeps its threads

from ffcv.fields.rgb_image import SimpleRGBImageDecoder  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 5)


class _CropDecoder(SimpleRGBImageDecoder):  # FFCV takes nothing else for a decoder of pictures
    """Decodes one crop a picture; a corrupt picture becomes black, is warned of and kept in ``corrupt_samples``."""

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
        """Which part of a picture to take."""
        raise NotImplementedError

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        """FFCV's question for the shape that comes out, and for memory: a table beside the pictures."""
        shape = (int(self.output_size[0]), int(self.output_size[1]), 3)
        if len(self._visits) != len(self.metadata):
            self._visits = np.zeros(len(self.metadata), np.int64)
        pictures = AllocationQuery(shape, np.dtype("<u1"))
        return replace(previous_state, jit_mode=True, shape=shape, dtype=np.dtype("<u1")), (
            pictures,
            AllocationQuery((len(COLUMNS),), np.dtype("<i8")),
        )

    def generate_code(self) -> Callable[..., Any]:
        """FFCV's question for code to compile: it finds the pictures, and calls back to have them decoded."""
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
            self._decode(MemoryPictures.of_table(table_address, count), out_address, (height, width))
        except Exception as error:
            warnings.warn(f"decoding failed: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)
            return 1
        return 0

    def _decode(self, pictures: MemoryPictures, out_address: int, size: tuple[int, int]) -> None:
        boxes = np.empty((len(pictures), 4), np.int64)
        flips = np.empty(len(pictures), np.bool_)
        visits = self._visits[pictures.samples]
        self._visits[pictures.samples] += 1
        epochs = visits if self.epoch is None else np.full_like(visits, self.epoch)
        for epoch in np.unique(epochs):
            some = np.flatnonzero(epochs == epoch)
            keys = SampleKeys(self.seed, int(epoch), pictures.samples[some])
            heights, widths = (sides[some].astype(np.int64) for sides in (pictures.heights, pictures.widths))
            chosen = self.cropper().crops(heights, widths, keys)
            boxes[some], flips[some] = chosen.boxes, chosen.flips
        out = pictures.array_at(out_address, (len(pictures), *size, 3))
        for slot, error in decode_on_threads(pictures, crops.Crops(boxes, flips), out, self._num_threads):
            out[slot] = 0
            self._report(int(pictures.samples[slot]), error.reason)

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
        """Which part of a picture to take."""
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
        """Which part of a picture to take."""
        return crops.CenterCrop(self.ratio, self.flip_prob)
