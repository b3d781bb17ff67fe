"""The layout of a .beton file, version 2, as FFCV 1.0 defines it (``ffcv.types``).

::

    header             HEADER, 24 bytes
    field descriptors  FIELD_DESCRIPTOR for every field
    samples            one aligned record a sample: the fields' entries side by side
    (zeros up to a multiple of the page size)
    pages              the images' bytes; no image lies on two pages
    allocation table   ALLOCATION for every region in the pages, in any order

All numbers are little-endian. An image entry holds only a pointer into the file; the size of what it
points to is found by that pointer in the allocation table. The header is completed last, so an
allocation table pointer of zero marks a file whose writing never ended.

The fields of a .beton: their names, and which of them is the image and which the label.
"""

from collections.abc import Sequence

import numpy as np

from rebar.errors import RebarError

VERSION = 2
MIN_PAGE_SIZE = 1 << 21
"""Bytes; the smallest page stock FFCV writes."""
MAX_PAGE_SIZE = 1 << 31
"""Bytes; the largest power of two that the header's 32 bits hold."""
DEFAULT_PAGE_SIZE = 8 << 20
"""Bytes; FFCV's own default."""

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
"""The image is stored as a JPEG stream."""
MODE_RAW = 1
"""The image is stored as height x width x 3 bytes, RGB."""

TYPE_INT = 1
TYPE_IMAGE = 2
TYPE_CUSTOM = 255

_BYTES_ENTRY = np.dtype([("ptr", "<u8"), ("size", "<u8")])
ENTRY_DTYPES = {
    0: np.dtype("<f8"),
    TYPE_INT: INT_ENTRY,
    TYPE_IMAGE: IMAGE_ENTRY,
    3: _BYTES_ENTRY,
    4: np.dtype("<u8"),  # an array: its pointer
    5: _BYTES_ENTRY,  # JSON
    6: np.dtype("<u8"),  # a tensor: its pointer
}
"""What a sample record holds for each field type."""


class BetonError(RebarError):
    """A .beton file, or its sidecar, that is missing, incomplete, damaged or of another kind."""


def sample_dtype(type_ids: Sequence[int]) -> np.dtype:
    """The record of one sample for these field types; the fields are named f0, f1, ...

    Raises KeyError for a type that has no fixed layout (255, a custom field).
    """
    return np.dtype([("", ENTRY_DTYPES[type_id]) for type_id in type_ids], align=True)


def field_descriptor(name: str, type_id: int) -> np.ndarray:
    """A descriptor of a field without arguments, as an array of one FIELD_DESCRIPTOR."""
    descriptor = np.zeros(1, FIELD_DESCRIPTOR)
    encoded = np.frombuffer(name.encode("ascii"), np.uint8)
    descriptor["type_id"] = type_id
    descriptor["name"][0, : len(encoded)] = encoded
    return descriptor


def round_up(position: int, page_size: int) -> int:
    """The first multiple of ``page_size`` at or after ``position`` (bytes)."""
    return -(-position // page_size) * page_size


def field_names(descriptors: np.ndarray) -> tuple[str, ...]:
    """The names in field descriptors, as text whatever their bytes are."""
    return tuple(bytes(raw).split(b"\0")[0].decode("ascii", "backslashreplace") for raw in descriptors["name"])


def choose_field(names: Sequence[str], type_ids: Sequence[int], type_id: int, name: str) -> int | None:
    """The number of the field of this type and name, else of the first field of this type, if there is one."""
    candidates = [number for number, found in enumerate(type_ids) if found == type_id]
    return next((number for number in candidates if names[number] == name), next(iter(candidates), None))
