"""The interfaces of images to be written and of images in a beton, and the decoding of the latter.

``verify``, ``inspect`` and the loader's full-image path share :func:`decode_image`.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rebar.beton.format import MODE_JPG, BetonError
from rebar.jpeg.decode import decode_rgb, read_size
from rebar.jpeg.format import JpegError


class Source(Protocol):
    """Labeled images, accessed by index.

    A source is pickled once for each worker process. It should therefore be small when pickled, and open files or
    connections only when an image is read.
    """

    @property
    def class_names(self) -> Sequence[str]:
        """The name of every label, in label order."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def label(self, index: int) -> int:
        """Return the label of an image: an index into ``class_names``."""
        ...

    def read(self, index: int) -> bytes:
        """Return the content of the image file (JPEG, PNG, ...). Raises OSError if it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """Return a name of the image for messages and reports."""
        ...


@runtime_checkable
class BlockSource(Protocol):
    """A source that reads images in blocks, such as the row groups of a Parquet file."""

    @property
    def blocks(self) -> np.ndarray:
        """The block of each image, int64 ``[n]``."""
        ...


@runtime_checkable
class OmittingSource(Protocol):
    """A source that reports the files or samples that it does not contain."""

    @property
    def omitted(self) -> Mapping[str, int]:
        """What was omitted, such as ``hidden file or folder`` -> how many."""
        ...


def omitted_by(source: Source) -> dict[str, int]:
    """Return what the source omitted, and how many of each kind, by name."""
    found = source.omitted if isinstance(source, OmittingSource) else {}
    return {kind: found[kind] for kind in sorted(found) if found[kind]}


def labels_of(source: Source) -> np.ndarray:
    """Return the label of every image, int64 ``[n]``."""
    labels = getattr(source, "labels", None)
    if isinstance(labels, np.ndarray):
        return labels.astype(np.int64)
    return np.fromiter((source.label(index) for index in range(len(source))), np.int64, len(source))


def blocks_of(source: Source) -> np.ndarray | None:
    """Return the block of every image, int64 ``[n]``; None if images can be read one by one."""
    return source.blocks if isinstance(source, BlockSource) else None


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
    """Return a sample's image, RGB uint8 ``[height, width, 3]``. CMYK is converted as in the writer.

    Raises BetonError if it cannot be decoded, or if its size differs from the size in the table; then no memory for its
    pixels is allocated. The message is a predicate such as "cannot be decoded: ..."; the caller prepends the file and
    the sample.
    """
    content = _content(stored, index)
    try:
        if stored.modes[index] != MODE_JPG:
            return content.reshape((int(stored.heights[index]), int(stored.widths[index]), 3))
        check_size(stored, index)
        return _decode_jpeg(content)
    except (JpegError, ValueError) as error:
        raise BetonError(f"cannot be decoded: {error}", code="beton-image-corrupt") from None


def _decode_jpeg(content: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode with libjpeg-turbo, or CMYK with Pillow, without its metadata if they are damaged. Raises JpegError."""
    try:
        return decode_rgb(content)
    except JpegError:
        from PIL import Image

        from rebar.beton.metadata import without_metadata

        jpeg = content.tobytes()
        for candidate in (jpeg, without_metadata(jpeg)):
            # Pillow raises many exception classes for corrupt files
            with suppress(Exception), Image.open(io.BytesIO(candidate), formats=["JPEG"]) as image:
                if image.mode == "CMYK":
                    return np.asarray(image.convert("RGB"))
        raise


def check_size(stored: StoredImages, index: int) -> None:
    """Compare the header of a sample's JPEG with the size in the table. Raises BetonError as :func:`decode_image`."""
    height, width = int(stored.heights[index]), int(stored.widths[index])
    try:
        found = read_size(_content(stored, index))
    except JpegError as error:
        raise BetonError(f"cannot be decoded: {error}", code="beton-image-corrupt") from None
    if found != (height, width):
        raise BetonError(
            f"is {found[1]}x{found[0]} px, but the table records {width}x{height} px", code="beton-image-corrupt"
        )


def _content(stored: StoredImages, index: int) -> NDArray[np.uint8]:
    start = int(stored.offsets[index])
    return stored.data[start : start + int(stored.sizes[index])]
