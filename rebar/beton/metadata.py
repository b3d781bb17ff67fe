"""The metadata of image files: their orientation, and their removal where a decoder cannot read them."""

import io
import warnings
import zlib

import numpy as np
from PIL import Image

JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
ROTATED = range(2, 9)
"""Orientations other than upright (Exif 2.3, 4.6.4 A)."""
_ORIENTATION_TAG = 0x0112
_ORIENTATION_HINTS = (b"Exif\0\0", b"tiff:Orientation")
_PNG_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_APP0, _APP1, _APP14, _APP15, _COM, _SOS = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE, 0xDA
_ADOBE_BYTES = 14  # the shortest complete APP14 segment, which names the color space


def is_upright(content: bytes, metadata_size: int) -> bool:
    """Return whether no orientation tag in the first ``metadata_size`` bytes of a JPEG rotates it."""
    if all(content.find(hint, 0, metadata_size) < 0 for hint in _ORIENTATION_HINTS):
        return True
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as image:
            warnings.simplefilter("ignore")
            return orientation_of(image) not in ROTATED
    except Exception:
        return False


def orientation_of(image: Image.Image) -> int:
    """Return an image's orientation tag; 1, upright, if it has none or if it cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # malformed Exif data does not affect the pixels
        return 1


def rotate(bgr: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an orientation tag, as ``PIL.ImageOps.exif_transpose`` does."""
    rotations = {
        2: lambda: bgr[:, ::-1],
        3: lambda: bgr[::-1, ::-1],
        4: lambda: bgr[::-1],
        5: lambda: bgr.transpose(1, 0, 2),
        6: lambda: np.rot90(bgr, -1),
        7: lambda: bgr[::-1, ::-1].transpose(1, 0, 2),
        8: lambda: np.rot90(bgr),
    }
    return rotations[orientation]()


def without_metadata(content: bytes) -> bytes:
    """Return a PNG or JPEG without text, color profiles and other metadata. Other content is returned unchanged.

    Exif data remains, because it contains the orientation; in a PNG only if its checksum is right.
    """
    if content.startswith(PNG_START):
        return _png_without_metadata(content)
    return _jpeg_without_metadata(content) if content.startswith(JPEG_START) else content


def _png_without_metadata(content: bytes) -> bytes:
    kept, position = [PNG_START], len(PNG_START)
    while position < len(content):
        size = int.from_bytes(content[position : position + 4], "big")
        chunk = content[position : position + size + 12]
        kind, checksum = chunk[4:8], int.from_bytes(chunk[-4:], "big")
        if kind in _PNG_PIXEL_CHUNKS or (kind == b"eXIf" and zlib.crc32(chunk[4:-4]) == checksum):
            kept.append(chunk)
        position += len(chunk)
    return b"".join(kept)


def _jpeg_without_metadata(content: bytes) -> bytes:
    kept, position = [content[:2]], 2
    while content[position : position + 1] == b"\xff" and content[position + 1 : position + 2] not in (b"", b"\xff"):
        marker, size = content[position + 1], int.from_bytes(content[position + 2 : position + 4], "big")
        if marker == _SOS or size < 2:
            break
        is_metadata = (_APP0 <= marker <= _APP15 and marker not in (_APP1, _APP14)) or marker == _COM
        if not is_metadata and (marker != _APP14 or size >= _ADOBE_BYTES):
            kept.append(content[position : position + 2 + size])
        position += 2 + size
    return b"".join([*kept, content[position:]])
