"""The layout of a .beton file, version 2, as FFCV 1.0 defines it (``ffcv.types``).

::

    header             HEADER, 24 bytes
    field descriptors  FIELD_DESCRIPTOR for every field
    samples            one aligned record per sample, with an entry for every field
    (zero padding to a multiple of the page size)
    pages              the encoded images; no image crosses a page boundary
    allocation table   ALLOCATION for every region in the pages, in any order

All numbers are little-endian. An image entry contains only a pointer into the file; the allocation table gives the
size of the region at that pointer. The header is written last, so an allocation table pointer of zero marks a file
whose writing was interrupted.
"""

from collections.abc import Sequence

import numpy as np

from rebar.errors import RebarError

VERSION = 2
MIN_PAGE_SIZE = 1 << 21
"""Bytes; the smallest page size that stock FFCV writes."""
MAX_PAGE_SIZE = 1 << 31
"""Bytes; the largest power of two that fits the header's 32-bit field."""
DEFAULT_PAGE_SIZE = 8 << 20
"""Bytes; FFCV's default."""

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD_DESCRIPTOR = np.dtype([("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

IMAGE_ENTRY = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
INT_ENTRY = np.dtype("<i8")

MODE_JPG = 0
"""The image is stored as a JPEG."""
MODE_RAW = 1
"""The image is stored as RGB pixels, height x width x 3 bytes."""

TYPE_INT = 1
TYPE_IMAGE = 2
TYPE_CUSTOM = 255

_BYTES_ENTRY = np.dtype([("ptr", "<u8"), ("size", "<u8")])
ENTRY_DTYPES = {
    0: np.dtype("<f8"),
    TYPE_INT: INT_ENTRY,
    TYPE_IMAGE: IMAGE_ENTRY,
    3: _BYTES_ENTRY,
    4: np.dtype("<u8"),  # pointer to an array
    5: _BYTES_ENTRY,  # JSON
    6: np.dtype("<u8"),  # pointer to a tensor
}
"""The entry of each field type in a sample record."""


class BetonError(RebarError):
    """A .beton file or its sidecar is missing, unreadable, damaged, or not usable."""


def sample_dtype(type_ids: Sequence[int]) -> np.dtype:
    """Return the record of one sample with fields of these types, named f0, f1, ...

    Raises KeyError for types without a fixed layout (255, a custom field).
    """
    return np.dtype([("", ENTRY_DTYPES[type_id]) for type_id in type_ids], align=True)


def field_descriptor(name: str, type_id: int) -> np.ndarray:
    """Return the descriptor of a field without arguments, as an array of one FIELD_DESCRIPTOR."""
    descriptor = np.zeros(1, FIELD_DESCRIPTOR)
    encoded = np.frombuffer(name.encode("ascii"), np.uint8)
    descriptor["type_id"] = type_id
    descriptor["name"][0, : len(encoded)] = encoded
    return descriptor


def round_up(position: int, page_size: int) -> int:
    """Return the first multiple of ``page_size`` at or after ``position`` (bytes)."""
    return -(-position // page_size) * page_size


def field_names(descriptors: np.ndarray) -> tuple[str, ...]:
    """Return the names of field descriptors; bytes outside ASCII are escaped."""
    return tuple(bytes(raw).split(b"\0")[0].decode("ascii", "backslashreplace") for raw in descriptors["name"])


def choose_field(names: Sequence[str], type_ids: Sequence[int], type_id: int, name: str) -> int | None:
    """Return the number of the field with this type and name, or of the first with this type, or None."""
    candidates = [number for number, found in enumerate(type_ids) if found == type_id]
    return next((number for number in candidates if names[number] == name), next(iter(candidates), None))
