"""Decode crops of stored images, with the crop decoder or by full-image decoding, and handle corrupt samples.

Images that the crop decoder does not support are decoded in full by :mod:`rebar.jpeg.decode` and resized by OpenCV.
Images that cannot be decoded in full either are corrupt.
"""

import functools
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from rebar.beton.format import MODE_JPG, BetonError
from rebar.beton.images import StoredImages, check_size, decode_image
from rebar.beton.reader import BetonFile
from rebar.cli import phase
from rebar.errors import RebarError
from rebar.loading.crops import Crops
from rebar.loading.options import OnError
from rebar.loading.rng import RngKeys, Stream, random_bits

if TYPE_CHECKING:
    from rebar.jpeg.crop_decoder import CropDecoder

MAX_CROP_DECODER_SIDE = 16_384
"""Pixels. Larger images are decoded in full, so that a wrong size in the table does not determine the memory."""
SUBSTITUTE_ATTEMPTS = 16
"""Number of substitutes to try for a corrupt sample. If all are corrupt, the loader raises an error."""


class CorruptSampleError(RebarError):
    """The image of sample ``index`` cannot be decoded, for ``reason``."""

    def __init__(self, message: str, index: int, reason: str) -> None:
        super().__init__(message, code="beton-image-corrupt")
        self.index = index
        self.reason = reason


class CorruptSampleWarning(UserWarning):
    """A corrupt sample was replaced by another sample, or by a black image in FFCV's loader."""


class CorruptSamples:
    """Implements ``on_error`` and records the corrupt samples: ``reasons`` maps an index to its error message."""

    def __init__(self, on_error: OnError) -> None:
        if on_error not in get_args(OnError):
            raise RebarError(
                f"on_error: {on_error!r} is unknown. Use {' or '.join(get_args(OnError))}.",
                code="loader-invalid-argument",
            )
        self.on_error = on_error
        self.reasons: dict[int, str] = {}

    def substitutes(self, error: CorruptSampleError, keys: RngKeys, candidates: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the candidates to try instead, a function of (seed, epoch, sample), or raise ``error``."""
        if self.on_error == "raise":
            raise error
        key = RngKeys(keys.seed, keys.epoch, np.array([error.index]))
        bits = random_bits(key, Stream.SUBSTITUTE, SUBSTITUTE_ATTEMPTS)[0]
        return candidates[(bits % np.uint64(len(candidates))).astype(np.int64)]

    def record(self, errors: list[CorruptSampleError]) -> None:
        """Add the samples to ``reasons``, with one warning per sample."""
        for error in errors:
            if error.index not in self.reasons:
                self.reasons[error.index] = str(error)
                warnings.warn(f"{error} Another sample replaces it.", CorruptSampleWarning, stacklevel=2)


def decode_full_image(
    stored: StoredImages, index: int, box: NDArray[np.int64], flip: bool, out: NDArray[np.uint8]
) -> None:
    """Decode a sample in full, and resize its ``box`` (top, left, height, width) into ``out``, uint8 ``[h, w, 3]``.

    Raises CorruptSampleError with file, sample and byte offset if the image cannot be decoded.
    """
    try:
        image = decode_image(stored, index)
    except BetonError as error:
        raise _corrupt_sample(stored, index, str(error)) from None
    resize_crop(image, box, flip, out)


def check_largest_size(file: BetonFile) -> None:
    """Raise CorruptSampleError if the table has a wrong size for the tallest or the widest JPEG.

    FFCV allocates memory for images of this size.
    """
    for index in {int(file.heights.argmax()), int(file.widths.argmax())}:
        if file.modes[index] == MODE_JPG:
            try:
                check_size(file, index)
            except BetonError as error:
                raise _corrupt_sample(file, index, str(error)) from None


def resize_crop(image: NDArray[np.uint8], box: NDArray[np.int64], flip: bool, out: NDArray[np.uint8]) -> None:
    """Resize an image's ``box`` into ``out`` with cv2.INTER_AREA, as FFCV does, flipped horizontally if ``flip``."""
    import cv2  # slow to import, and unused if the crop decoder supports every image

    if cv2.getNumThreads() > 1:
        cv2.setNumThreads(1)  # the loader's threads already use all cores
    top, left, height, width = (int(edge) for edge in box)
    crop = image[top : top + height, left : left + width]
    resized = cv2.resize(crop, (out.shape[1], out.shape[0]), interpolation=cv2.INTER_AREA)
    out[:] = resized[:, ::-1] if flip else resized


def _corrupt_sample(stored: StoredImages, index: int, reason: str) -> CorruptSampleError:
    """Return the error of a sample, with its file, byte offset and advice; ``reason`` is a predicate."""
    path, offset = stored.path, int(stored.offsets[index])
    if isinstance(stored, BetonFile):
        (file,), (offset,), _ = stored.regions(np.array([index]))
        path = stored.files[file]
    return CorruptSampleError(
        f"{path}: the image of sample {index}, at byte {offset}, {reason}. {_advice(stored, index)}", index, reason
    )


def _advice(stored: StoredImages, index: int) -> str:
    """Return the fix for a corrupt image: the sidecar's checksum shows whether the file was damaged after writing."""
    matches = stored.page_matches(index) if isinstance(stored, BetonFile) else None
    if matches is None:
        return "Copy the file again, or write it again."
    if matches:
        return "Its page matches the sidecar's checksum, so it was corrupt when written. Write the file again."
    return "Its page does not match the sidecar's checksum, so the file was damaged later. Copy it again."


_compiling = threading.Lock()


def new_crop_decoder(max_height: int, max_width: int) -> "CropDecoder | None":
    """Return a crop decoder for images up to this size (pixels); None, with one warning, if it is unavailable."""
    with _compiling:  # one thread compiles the kernel, the others wait
        available = _crop_decoder_available()
    if not available:
        return None
    from rebar.jpeg.crop_decoder import CropDecoder

    return CropDecoder(min(max_height, MAX_CROP_DECODER_SIDE), min(max_width, MAX_CROP_DECODER_SIDE))


@functools.cache
def _crop_decoder_available() -> bool:
    """Load the compiled kernel, or compile it if it is not in the kernel cache."""
    try:
        from rebar.jpeg.kernel_cache import load_kernel

        with phase("compiling the JPEG kernels"):  # prints nothing if they are cached
            load_kernel()
        return True
    except Exception as error:  # numba raises exceptions of many types
        warnings.warn(
            f"the crop decoder is unavailable, images are decoded in full, which is slower: {error}", stacklevel=2
        )
        return False


class ImageDecoder:
    """Decodes crops of images up to a maximum size in pixels. Not thread-safe: threads use a DecoderPool."""

    def __init__(self, max_height: int, max_width: int) -> None:
        self.max_height = max_height
        self.max_width = max_width
        self._crop_decoder = new_crop_decoder(max_height, max_width)

    def decode(
        self, stored: StoredImages, indices: NDArray[np.integer], crops: Crops, out: NDArray[np.uint8]
    ) -> list[tuple[int, CorruptSampleError]]:
        """Decode the samples' crops into ``out``, uint8 ``[n, height, width, 3]``, C-contiguous.

        Returns the rows of ``out`` whose samples are corrupt, ascending, with their errors.
        """
        failures = []
        for row in self._decode_crops(stored, indices, crops, out):
            try:
                decode_full_image(stored, int(indices[row]), crops.boxes[row], bool(crops.flips[row]), out[row])
            except CorruptSampleError as error:
                failures.append((row, error))
        return failures

    def _decode_crops(
        self, stored: StoredImages, indices: NDArray[np.integer], crops: Crops, out: NDArray[np.uint8]
    ) -> list[int]:
        """Decode with the crop decoder. Return the rows that it does not support, ascending."""
        if self._crop_decoder is None:
            return list(range(len(indices)))
        unsupported: list[int] = []
        for start, end, jpegs in _runs(stored.modes[indices] == MODE_JPG):
            if not jpegs:
                unsupported.extend(range(start, end))
                continue
            part, samples = slice(start, end), indices[start:end]
            shapes = np.stack([stored.heights[samples], stored.widths[samples]], axis=1).astype(np.int64)
            statuses = self._crop_decoder.decode_crops(
                stored.data,
                stored.offsets[samples],
                stored.sizes[samples],
                crops.boxes[part],
                crops.flips[part],
                out[part],
                shapes,
            )
            unsupported.extend(start + int(row) for row in np.flatnonzero(statuses))
        return unsupported


class DecoderPool:
    """Idle decoders. A thread borrows one for its part of a batch."""

    def __init__(self, capacity: int | None = None) -> None:
        self._idle: deque[ImageDecoder] = deque(maxlen=capacity)  # appending and popping are atomic

    def __reduce__(self) -> tuple[Any, ...]:
        return DecoderPool, (self._idle.maxlen,)

    @contextmanager
    def borrow(self, max_height: int, max_width: int) -> Iterator[ImageDecoder]:
        """Lend a decoder for images up to this size (pixels)."""
        decoder = self._take_idle(max_height, max_width) or ImageDecoder(max_height, max_width)
        try:
            yield decoder
        finally:
            self._idle.append(decoder)

    def _take_idle(self, height: int, width: int) -> ImageDecoder | None:
        """Return an idle decoder that is large enough, if any; release smaller ones."""
        while True:
            try:
                decoder = self._idle.pop()
            except IndexError:
                return None
            if decoder.max_height >= height and decoder.max_width >= width:
                return decoder


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int, bool]]:
    """Return the runs of equal flags as (start, end, flag)."""
    if len(flags) == 0:
        return []
    edges = [0, *(np.flatnonzero(flags[1:] != flags[:-1]) + 1).tolist(), len(flags)]
    return [(start, end, bool(flags[start])) for start, end in pairwise(edges)]
