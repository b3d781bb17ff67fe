"""Many crops by one thread: through the fast decoder where it can, whole pictures where it cannot.

A picture the fast decoder refuses is given to libturbojpeg, which has the last word: what it cannot
decode either is corrupt, and its message says why.
"""

import functools
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rebar.beton.format import MODE_JPG
from rebar.loading.crops import Crops
from rebar.loading.decode import CorruptSampleError, StoredPictures, decode_whole

if TYPE_CHECKING:
    from rebar.jpeg.fast import CropDecoder

_OK = 0
_loading = threading.Lock()


def new_crop_decoder(max_height: int, max_width: int) -> "CropDecoder | None":
    """A fast decoder for pictures up to this size (pixels); None, said once, where it does not work."""
    with _loading:  # else the first threads would all compile it
        works = _fast_decoder_works()
    if not works:
        return None
    from rebar.jpeg.fast import CropDecoder

    return CropDecoder(max_height, max_width)


@functools.cache
def _fast_decoder_works() -> bool:
    """Load the kernel, or compile it where that was not done before."""
    try:
        from rebar.jpeg.machine_code import load_kernel

        load_kernel()
        return True
    except Exception as error:  # numba raises many kinds
        warnings.warn(f"the fast JPEG decoder does not work here, pictures are decoded whole: {error}", stacklevel=2)
        return False


class PictureDecoder:
    """Decodes crops of pictures up to a size (pixels); belongs to one thread at a time."""

    def __init__(self, max_height: int, max_width: int) -> None:
        self.max_height = max_height
        self.max_width = max_width
        self._fast = new_crop_decoder(max_height, max_width)

    def decode(
        self, stored: StoredPictures, indices: NDArray[np.integer], crops: Crops, out: NDArray[np.uint8]
    ) -> list[tuple[int, CorruptSampleError]]:
        """Decode the samples' crops into ``out``, uint8 ``[n, height, width, 3]``, C-contiguous.

        Returns the places in ``out`` that could not be filled, ascending, each with the reason.
        """
        failures = []
        for slot in self._left_by_fast(stored, indices, crops, out):
            try:
                decode_whole(stored, int(indices[slot]), crops.boxes[slot], bool(crops.flips[slot]), out[slot])
            except CorruptSampleError as error:
                failures.append((slot, error))
        return failures

    def _left_by_fast(
        self, stored: StoredPictures, indices: NDArray[np.integer], crops: Crops, out: NDArray[np.uint8]
    ) -> list[int]:
        """Fill what the fast decoder takes; returns the other places, ascending."""
        if self._fast is None:
            return list(range(len(indices)))
        left: list[int] = []
        for start, end, jpegs in _runs(stored.modes[indices] == MODE_JPG):
            if not jpegs:
                left.extend(range(start, end))
                continue
            some = indices[start:end]
            boxes, flips = crops.boxes[start:end], crops.flips[start:end]
            shapes = np.stack([stored.heights[some], stored.widths[some]], axis=1).astype(np.int64)
            statuses = self._fast.decode_crops(
                stored.data, stored.offsets[some], stored.sizes[some], boxes, flips, out[start:end], shapes
            )
            left.extend(start + int(slot) for slot in np.flatnonzero(statuses != _OK))
        return left


class DecoderPool:
    """Decoders that no thread is using; a thread borrows one for its share of a batch."""

    def __init__(self, keep: int | None = None) -> None:
        self._idle: deque[PictureDecoder] = deque(maxlen=keep)  # appending and popping are atomic

    @contextmanager
    def borrow(self, max_height: int, max_width: int) -> Iterator[PictureDecoder]:
        """An idle decoder for pictures of this size (pixels), else a new one."""
        decoder = self._large_enough(max_height, max_width) or PictureDecoder(max_height, max_width)
        try:
            yield decoder
        finally:
            self._idle.append(decoder)

    def _large_enough(self, height: int, width: int) -> PictureDecoder | None:
        """Those too small are let go."""
        while True:
            try:
                decoder = self._idle.pop()
            except IndexError:
                return None
            if decoder.max_height >= height and decoder.max_width >= width:
                return decoder


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int, bool]]:
    """The stretches (start, end, flag) of equal flags."""
    if len(flags) == 0:
        return []
    edges = [0, *(np.flatnonzero(flags[1:] != flags[:-1]) + 1).tolist(), len(flags)]
    return [(start, end, bool(flags[start])) for start, end in pairwise(edges)]
