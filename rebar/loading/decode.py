"""One stored image to one network input: decode all of it, crop, resize, flip.

The reference, and the way for what the fast decoder does not take.

What happens with samples that cannot be decoded: the batch fails, or another sample takes the place.

Many crops by one thread: through the fast decoder where it can, whole images where it cannot.

An image the fast decoder refuses is given to libturbojpeg, which has the last word: what it cannot
decode either is corrupt, and its message says why.
"""

import functools
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rebar.beton.format import MODE_JPG, BetonError
from rebar.beton.reader import BetonFile
from rebar.beton.stored_image import StoredImages, decode_image
from rebar.errors import RebarError
from rebar.loading.crops import Crops
from rebar.loading.rng import RngKeys, Stream, random_bits

if TYPE_CHECKING:
    from rebar.jpeg.crop_decoder import CropDecoder


class CorruptSampleError(RebarError):
    """A sample whose image cannot be decoded; ``index`` says which, ``reason`` why."""

    def __init__(self, message: str, index: int, reason: str) -> None:
        super().__init__(message, code="beton-image-corrupt")
        self.index = index
        self.reason = reason


def _corrupt(stored: StoredImages, index: int, reason: str) -> CorruptSampleError:
    path, offset = stored.path, int(stored.offsets[index])
    if isinstance(stored, BetonFile):
        (file,), (offset,), _ = stored.regions(np.array([index]))
        path = stored.files[file]
    return CorruptSampleError(
        f"{path}: the image of sample {index}, at byte {offset}, {reason}. {_advice(stored, index)}", index, reason
    )


def _advice(stored: StoredImages, index: int) -> str:
    """What to do about a corrupt image: the sidecar's checksum tells when it became so."""
    matches = stored.page_matches(index) if isinstance(stored, BetonFile) else None
    if matches is None:
        return "Copy the file again or write it anew"
    if matches:
        return "Its page is as it was written, so the image was stored like that: write the file anew"
    return "Its page does not match the sidecar's checksum, so the file was damaged later: copy it again"


def decode_whole(stored: StoredImages, index: int, box: NDArray[np.int64], flip: bool, out: NDArray[np.uint8]) -> None:
    """Decode a sample's ``box`` (top, left, height, width) into ``out``, uint8 ``[height, width, 3]``.

    Raises CorruptSampleError with file, sample and byte offset if the image cannot be decoded.
    """
    try:
        image = decode_image(stored, index)
    except BetonError as error:
        raise _corrupt(stored, index, str(error)) from None
    resize_crop(image, box, flip, out)


def resize_crop(image: NDArray[np.uint8], box: NDArray[np.int64], flip: bool, out: NDArray[np.uint8]) -> None:
    """Resize an image's ``box`` to ``out``, mirrored if ``flip``.

    By area averaging when shrinking (cv2 INTER_AREA), as FFCV does.
    """
    import cv2  # not needed where the fast decoder takes everything

    if cv2.getNumThreads() > 1:
        cv2.setNumThreads(1)  # the loader's threads share the cores already
    top, left, height, width = (int(edge) for edge in box)
    part = image[top : top + height, left : left + width]
    resized = cv2.resize(part, (out.shape[1], out.shape[0]), interpolation=cv2.INTER_AREA)
    out[:] = resized[:, ::-1] if flip else resized


OnError = Literal["raise", "replace"]
ATTEMPTS = 16
"""How many substitutes are tried: more corrupt ones in a row mean that the file is lost."""


class CorruptSampleWarning(UserWarning):
    """A sample that cannot be decoded was replaced by another."""


class Corruption:
    """The policy, and the corrupt samples met so far: ``samples`` maps the index to the message."""

    def __init__(self, on_error: OnError, candidates: NDArray[np.int64]) -> None:
        if on_error not in get_args(OnError):
            raise RebarError(f"on_error: {on_error!r} is none of {', '.join(get_args(OnError))}")
        self.on_error = on_error
        self.candidates = candidates
        self.samples: dict[int, str] = {}

    def substitutes(self, error: CorruptSampleError, keys: RngKeys) -> NDArray[np.int64]:
        """The samples to try instead, a function of (seed, epoch, sample); raises ``error`` if that is the policy."""
        if self.on_error == "raise":
            raise error
        key = RngKeys(keys.seed, keys.epoch, np.array([error.index]))
        bits = random_bits(key, Stream.SUBSTITUTE, ATTEMPTS)[0]
        return self.candidates[(bits % np.uint64(len(self.candidates))).astype(np.int64)]

    def record(self, errors: list[CorruptSampleError]) -> None:
        """Count the samples, and warn of each once."""
        for error in errors:
            if error.index not in self.samples:
                self.samples[error.index] = str(error)
                warnings.warn(f"{error}. Another sample takes its place", CorruptSampleWarning, stacklevel=2)


_OK = 0
_loading = threading.Lock()


def new_crop_decoder(max_height: int, max_width: int) -> "CropDecoder | None":
    """A fast decoder for images up to this size (pixels); None, said once, where it does not work."""
    with _loading:  # else the first threads would all compile it
        works = _fast_decoder_works()
    if not works:
        return None
    from rebar.jpeg.crop_decoder import CropDecoder

    return CropDecoder(max_height, max_width)


@functools.cache
def _fast_decoder_works() -> bool:
    """Load the kernel, or compile it where that was not done before."""
    try:
        from rebar.jpeg.kernel_cache import load_kernel

        load_kernel()
        return True
    except Exception as error:  # numba raises many kinds
        warnings.warn(f"the fast JPEG decoder does not work here, images are decoded whole: {error}", stacklevel=2)
        return False


class ImageDecoder:
    """Decodes crops of images up to a size (pixels); belongs to one thread at a time."""

    def __init__(self, max_height: int, max_width: int) -> None:
        self.max_height = max_height
        self.max_width = max_width
        self._fast = new_crop_decoder(max_height, max_width)

    def decode(
        self, stored: StoredImages, indices: NDArray[np.integer], crops: Crops, out: NDArray[np.uint8]
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
        self, stored: StoredImages, indices: NDArray[np.integer], crops: Crops, out: NDArray[np.uint8]
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
        self._idle: deque[ImageDecoder] = deque(maxlen=keep)  # appending and popping are atomic

    @contextmanager
    def borrow(self, max_height: int, max_width: int) -> Iterator[ImageDecoder]:
        """An idle decoder for images of this size (pixels), else a new one."""
        decoder = self._large_enough(max_height, max_width) or ImageDecoder(max_height, max_width)
        try:
            yield decoder
        finally:
            self._idle.append(decoder)

    def _large_enough(self, height: int, width: int) -> ImageDecoder | None:
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
