"""Decode one image of a beton. ``verify``, ``inspect`` and the loader's full-image path share this function."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rebar.beton.format import MODE_JPG, BetonError
from rebar.jpeg.decode import decode_rgb
from rebar.jpeg.format import JpegError


class StoredImages(Protocol):
    """Encoded images in memory, such as a :class:`rebar.beton.BetonFile`. The arrays have one element per sample."""

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


def decode_image(stored: StoredImages, index: int) -> NDArray[np.uint8]:
    """Return a sample's image, RGB uint8 ``[height, width, 3]``.

    Raises BetonError if it cannot be decoded, or if its size differs from the size in the table. The message is a
    predicate such as "cannot be decoded: ..."; the caller prepends the file and the sample.
    """
    start = int(stored.offsets[index])
    content = stored.data[start : start + int(stored.sizes[index])]
    shape = (int(stored.heights[index]), int(stored.widths[index]), 3)
    try:
        image = decode_rgb(content) if stored.modes[index] == MODE_JPG else content.reshape(shape)
    except (JpegError, ValueError) as error:
        raise BetonError(f"cannot be decoded: {error}", code="beton-image-corrupt") from None
    if image.shape != shape:
        raise BetonError(
            f"is {image.shape[1]}x{image.shape[0]} px, but the table records {shape[1]}x{shape[0]} px",
            code="beton-image-corrupt",
        )
    return image
