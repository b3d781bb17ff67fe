"""One stored picture to one network input: decode, crop, resize, flip."""

import cv2
import numpy as np
from numpy.typing import NDArray

from rebar.beton.format import MODE_JPG
from rebar.beton.reader import BetonFile
from rebar.errors import RebarError
from rebar.jpeg.turbojpeg import JpegError, decode_rgb

cv2.setNumThreads(1)  # the loader's threads share the cores already


class CorruptSampleError(RebarError):
    """A sample whose picture cannot be decoded."""


def read_picture(beton: BetonFile, index: int) -> NDArray[np.uint8]:
    """The whole picture of a sample, RGB uint8 ``[height, width, 3]``.

    Raises CorruptSampleError, naming file, sample and place, where it cannot be decoded or has another
    size than the file says.
    """
    stored = beton.image_bytes(index)
    shape = (int(beton.heights[index]), int(beton.widths[index]), 3)
    try:
        picture = decode_rgb(stored) if beton.modes[index] == MODE_JPG else stored.reshape(shape)
    except (JpegError, ValueError) as error:
        raise _corrupt(beton, index, str(error)) from None
    if picture.shape != shape:
        raise _corrupt(beton, index, f"it is {picture.shape[1]}x{picture.shape[0]} px, not {shape[1]}x{shape[0]}")
    return picture


def _corrupt(beton: BetonFile, index: int, reason: str) -> CorruptSampleError:
    return CorruptSampleError(
        f"{beton.path}: the picture of sample {index}, at byte {int(beton.offsets[index])}, cannot be decoded: "
        f"{reason}. Copy the file again or write it anew"
    )


def decode_into(beton: BetonFile, index: int, box: NDArray[np.int64], flip: bool, out: NDArray[np.uint8]) -> None:
    """Decode a sample's ``box`` (top, left, height, width) into ``out``, uint8 ``[size, size, 3]``.

    Resized by area averaging when shrinking (cv2 INTER_AREA), as FFCV does; mirrored if ``flip``.
    """
    top, left, height, width = (int(edge) for edge in box)
    picture = read_picture(beton, index)[top : top + height, left : left + width]
    resized = cv2.resize(picture, (out.shape[1], out.shape[0]), interpolation=cv2.INTER_AREA)
    out[:] = resized[:, ::-1] if flip else resized
