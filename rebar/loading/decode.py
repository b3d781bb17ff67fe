"""One stored picture to one network input: decode all of it, crop, resize, flip.

The reference, and the way for what the fast decoder does not take.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rebar.beton.format import MODE_JPG
from rebar.beton.reader import BetonFile
from rebar.errors import RebarError
from rebar.jpeg.turbojpeg import JpegError, decode_rgb


class StoredPictures(Protocol):
    """Where pictures lie: what decoding needs of a :class:`rebar.beton.BetonFile`, one element a sample."""

    @property
    def path(self) -> Path: ...
    @property
    def data(self) -> NDArray[np.uint8]: ...
    @property
    def offsets(self) -> NDArray[np.uint64]: ...
    @property
    def sizes(self) -> NDArray[np.uint64]: ...
    @property
    def modes(self) -> NDArray[np.uint8]: ...
    @property
    def heights(self) -> NDArray[np.uint16]: ...
    @property
    def widths(self) -> NDArray[np.uint16]: ...


class CorruptSampleError(RebarError):
    """A sample whose picture cannot be decoded; ``index`` says which, ``reason`` why."""

    def __init__(self, message: str, index: int, reason: str) -> None:
        super().__init__(message)
        self.index = index
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return CorruptSampleError, (str(self), self.index, self.reason)


def read_picture(stored: StoredPictures, index: int) -> NDArray[np.uint8]:
    """The whole picture of a sample, RGB uint8 ``[height, width, 3]``.

    Raises CorruptSampleError, naming file, sample and place, where it cannot be decoded or has another
    size than the file says.
    """
    start = int(stored.offsets[index])
    content = stored.data[start : start + int(stored.sizes[index])]
    shape = (int(stored.heights[index]), int(stored.widths[index]), 3)
    try:
        picture = decode_rgb(content) if stored.modes[index] == MODE_JPG else content.reshape(shape)
    except (JpegError, ValueError) as error:
        raise _corrupt(stored, index, str(error)) from None
    if picture.shape != shape:
        raise _corrupt(stored, index, f"it is {picture.shape[1]}x{picture.shape[0]} px, not {shape[1]}x{shape[0]}")
    return picture


def _corrupt(stored: StoredPictures, index: int, reason: str) -> CorruptSampleError:
    path, offset = stored.path, int(stored.offsets[index])
    if isinstance(stored, BetonFile):
        (file,), (offset,), _ = stored.regions(np.array([index]))
        path = stored.files[file]
    return CorruptSampleError(
        f"{path}: the picture of sample {index}, at byte {offset}, cannot be decoded: "
        f"{reason}. {_advice(stored, index)}",
        index,
        reason,
    )


def _advice(stored: StoredPictures, index: int) -> str:
    """What to do about a corrupt picture: the sidecar's checksum tells when it became so."""
    matches = stored.page_matches(index) if isinstance(stored, BetonFile) else None
    if matches is None:
        return "Copy the file again or write it anew"
    if matches:
        return "Its page is as it was written, so the picture was stored like that: write the file anew"
    return "Its page does not match the sidecar's checksum, so the file was damaged later: copy it again"


def decode_whole(
    stored: StoredPictures, index: int, box: NDArray[np.int64], flip: bool, out: NDArray[np.uint8]
) -> None:
    """Decode a sample's ``box`` (top, left, height, width) into ``out``, uint8 ``[height, width, 3]``.

    Raises CorruptSampleError as :func:`read_picture` does.
    """
    resize_crop(read_picture(stored, index), box, flip, out)


def resize_crop(picture: NDArray[np.uint8], box: NDArray[np.int64], flip: bool, out: NDArray[np.uint8]) -> None:
    """Resize a picture's ``box`` to ``out``, mirrored if ``flip``.

    By area averaging when shrinking (cv2 INTER_AREA), as FFCV does.
    """
    import cv2  # not needed where the fast decoder takes everything

    if cv2.getNumThreads() > 1:
        cv2.setNumThreads(1)  # the loader's threads share the cores already
    top, left, height, width = (int(edge) for edge in box)
    part = picture[top : top + height, left : left + width]
    resized = cv2.resize(part, (out.shape[1], out.shape[0]), interpolation=cv2.INTER_AREA)
    out[:] = resized[:, ::-1] if flip else resized
