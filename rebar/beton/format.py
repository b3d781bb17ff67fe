"""The layout of a .beton file, version 2, as FFCV 1.0 defines it (``ffcv.types``), and the validation of its tables.

::

    header             HEADER, 24 bytes
    field descriptors  FIELD_DESCRIPTOR for every field
    samples            one aligned record per sample, with an entry for every field
    (zero padding to a multiple of the page size)
    pages              the encoded images; no image crosses a page boundary
    allocation table   ALLOCATION for every region in the pages, in any order

All numbers are little-endian. An image entry contains only a pointer into the file; the allocation table gives the
size of the region at that pointer. The header is written last, so an allocation table pointer of zero marks a file
whose writing was interrupted. Files may be damaged, so every value is checked against the file size before it is used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

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


def _truncated(path: Path, needed: int, file_size: int) -> BetonError:
    return BetonError(
        f"{path} is truncated or damaged: at least {needed:,} bytes are expected, the file has {file_size:,}. Copy it "
        "again.",
        code="beton-truncated",
    )


def _damaged(path: Path, problem: str) -> BetonError:
    return BetonError(f"{path} is damaged: {problem}. Copy or write it again.", code="beton-damaged")


def read_tables(file: IO[bytes], path: Path, file_size: int) -> dict[str, Any]:
    """Read the tables; return the arguments of BetonFile that come from them.

    Raises BetonError if a table is missing, truncated or inconsistent.
    """
    header = _read_header(file, path, file_size)
    num_samples, table_start = int(header["num_samples"]), int(header["alloc_table_ptr"])
    fields_end = HEADER.itemsize + int(header["num_fields"]) * FIELD_DESCRIPTOR.itemsize
    if fields_end > file_size:
        raise _truncated(path, fields_end, file_size)
    descriptors = np.fromfile(file, FIELD_DESCRIPTOR, int(header["num_fields"]))
    names = field_names(descriptors)
    type_ids = [int(type_id) for type_id in descriptors["type_id"]]
    for name, type_id in zip(names, type_ids, strict=True):
        if type_id not in ENTRY_DTYPES:
            raise BetonError(
                f"{path}: field '{name}' has a custom type ({type_id}), which only the program that wrote it can read. "
                "Write the file with FFCV's standard fields, or with write_dataset.py.",
                code="beton-field-unsupported",
            )
    image = _find_field(path, names, type_ids, TYPE_IMAGE, "image")
    label = _find_field(path, names, type_ids, TYPE_INT, "label")

    dtype = sample_dtype(type_ids)
    samples_end = fields_end + num_samples * dtype.itemsize
    if samples_end > file_size:
        raise _truncated(path, samples_end, file_size)
    if table_start < samples_end:
        raise _damaged(path, f"the allocation table starts at byte {table_start:,}, within the sample records")
    table_bytes = file_size - table_start
    if table_bytes < num_samples * ALLOCATION.itemsize:
        raise _truncated(path, table_start + num_samples * ALLOCATION.itemsize, file_size)
    if table_bytes % ALLOCATION.itemsize:
        raise _truncated(path, file_size + -table_bytes % ALLOCATION.itemsize, file_size)

    samples = np.fromfile(file, dtype, num_samples)
    file.seek(table_start)
    allocations = np.fromfile(file, ALLOCATION, table_bytes // ALLOCATION.itemsize)
    entries = samples[f"f{image}"]
    tables: dict[str, np.ndarray] = {
        "labels": samples[f"f{label}"].astype(np.int64),
        "heights": entries["height"].astype(np.uint16),
        "widths": entries["width"].astype(np.uint16),
        "modes": entries["mode"].copy(),
        "offsets": entries["data_ptr"].astype(np.uint64),
    }
    tables["sizes"] = _look_up_sizes(path, tables["offsets"], allocations)
    _check_images(path, tables, samples_end, table_start)
    for array in tables.values():
        array.setflags(write=False)
    return {**tables, "num_samples": num_samples, "page_size": int(header["page_size"]), "field_names": names}


def _read_header(file: IO[bytes], path: Path, file_size: int) -> np.void:
    if file_size < HEADER.itemsize:
        raise _truncated(path, HEADER.itemsize, file_size)
    header: np.void = np.fromfile(file, HEADER, 1)[0]
    if header["version"] != VERSION:
        raise BetonError(
            f"{path} is not a .beton file of version {VERSION} (its version field is {int(header['version'])}). Pass "
            "a file written by write_dataset.py or FFCV 1.x.",
            code="beton-version-unsupported",
        )
    page_size = int(header["page_size"])
    if page_size == 0 or page_size & (page_size - 1):
        raise _damaged(path, f"the page size of {page_size:,} bytes is not a power of two")
    if header["num_fields"] == 0:
        raise _damaged(path, "it has no fields")
    if header["alloc_table_ptr"] == 0:
        raise BetonError(f"{path} is unfinished: its writing was interrupted. Write it again.", code="beton-unfinished")
    if header["num_samples"] == 0:
        raise BetonError(f"{path}: contains no samples. Write it again.", code="beton-empty")
    return header


def _find_field(path: Path, names: tuple[str, ...], type_ids: list[int], type_id: int, name: str) -> int:
    number = choose_field(names, type_ids, type_id, name)
    if number is None:
        kind = {TYPE_IMAGE: "RGBImageField", TYPE_INT: "IntField"}[type_id]
        raise BetonError(
            f"{path} has no {name} field ({kind}), only {', '.join(map(repr, names))}. Pass a file of labeled images.",
            code="beton-field-unsupported",
        )
    return number


def _look_up_sizes(path: Path, offsets: np.ndarray, allocations: np.ndarray) -> np.ndarray:
    """Return the size in bytes (uint64) of the region at each offset, from the allocation table."""
    pointers, sizes = allocations["ptr"].astype(np.uint64), allocations["size"].astype(np.uint64)
    if not np.all(pointers[:-1] < pointers[1:]):  # FFCV's workers do not write it in order
        order = np.lexsort((sizes, pointers))  # an empty region has the pointer of the next one: sort it first
        pointers, sizes = pointers[order], sizes[order]
    found = np.searchsorted(pointers, offsets, side="right") - 1
    missing = (found < 0) | (pointers[found] != offsets)
    if missing.any():
        raise _damaged(path, f"the image of sample {int(missing.argmax())} is not in the allocation table")
    return sizes[found]


def _check_images(path: Path, tables: dict[str, np.ndarray], start: int, end: int) -> None:
    """Check the entry of every image; images must be between bytes ``start`` and ``end``."""
    offsets, sizes, modes = tables["offsets"], tables["sizes"], tables["modes"]
    # offset + size may overflow 64 bits, so they are compared without adding them.
    outside = (offsets < start) | (sizes > end) | (offsets > end - np.minimum(sizes, end))
    pixels = tables["heights"].astype(np.uint64) * tables["widths"]
    for wrong, problem in (
        (outside, "is outside the pages"),
        (sizes == 0, "has no bytes"),
        (pixels == 0, "has no pixels"),
        ((modes != MODE_JPG) & (modes != MODE_RAW), "is stored neither as JPEG nor as raw pixels"),
        ((modes == MODE_RAW) & (sizes != 3 * pixels), "is raw, but its size does not match its number of pixels"),
    ):
        if wrong.any():
            raise _damaged(path, f"the image of sample {int(wrong.argmax())} {problem}")
