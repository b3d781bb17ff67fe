"""Read and validate the tables of a .beton file: header, field descriptors, samples and allocations.

Files may be damaged, so every value is checked against the file size before it is used.
"""

from pathlib import Path
from typing import IO, Any

import numpy as np

from rebar.beton.format import (
    ALLOCATION,
    ENTRY_DTYPES,
    FIELD_DESCRIPTOR,
    HEADER,
    MODE_JPG,
    MODE_RAW,
    TYPE_IMAGE,
    TYPE_INT,
    VERSION,
    BetonError,
    choose_field,
    field_names,
    sample_dtype,
)


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
            f"{path} is not a .beton file of version {VERSION} (its version field is {int(header['version'])}). Give "
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
            f"{path} has no {name} field ({kind}), only {', '.join(map(repr, names))}. Give a file of labeled images.",
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
