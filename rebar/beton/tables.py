"""The tables of a .beton file, read and checked: header, fields, samples, allocations.

A file may be damaged in any way: nothing is believed before it is compared with the size of the file.
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


def _cut_short(path: Path, needed: int, file_size: int) -> BetonError:
    return BetonError(
        f"{path}: is cut short or damaged: needs at least {needed:,} bytes, has {file_size:,}; copy it again"
    )


def _damaged(path: Path, what: str) -> BetonError:
    return BetonError(f"{path}: is damaged: {what}; copy or write it again")


def read_tables(file: IO[bytes], path: Path, file_size: int) -> dict[str, Any]:
    """Everything of a BetonFile but its data and class names. Nothing read is larger than the file."""
    header = _read_header(file, path, file_size)
    num_samples, table_start = int(header["num_samples"]), int(header["alloc_table_ptr"])
    fields_end = HEADER.itemsize + int(header["num_fields"]) * FIELD_DESCRIPTOR.itemsize
    if fields_end > file_size:
        raise _cut_short(path, fields_end, file_size)
    descriptors = np.fromfile(file, FIELD_DESCRIPTOR, int(header["num_fields"]))
    names = field_names(descriptors)
    type_ids = [int(type_id) for type_id in descriptors["type_id"]]
    for name, type_id in zip(names, type_ids, strict=True):
        if type_id not in ENTRY_DTYPES:
            raise BetonError(
                f"{path}: field '{name}' is of a custom type ({type_id}) that only its own program can "
                "read; write the file with the standard fields: write_dataset.py does"
            )
    image = _find_field(path, names, type_ids, TYPE_IMAGE, "image")
    label = _find_field(path, names, type_ids, TYPE_INT, "label")

    dtype = sample_dtype(type_ids)
    samples_end = fields_end + num_samples * dtype.itemsize
    if samples_end > file_size:
        raise _cut_short(path, samples_end, file_size)
    if table_start < samples_end:
        raise _damaged(path, f"its allocation table would lie at byte {table_start:,}, among its samples")
    table_bytes = file_size - table_start
    if table_bytes < num_samples * ALLOCATION.itemsize:
        raise _cut_short(path, table_start + num_samples * ALLOCATION.itemsize, file_size)
    if table_bytes % ALLOCATION.itemsize:
        raise _cut_short(path, file_size + -table_bytes % ALLOCATION.itemsize, file_size)

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
    tables["sizes"] = _sizes_of(path, tables["offsets"], allocations)
    _check_images(path, tables, samples_end, table_start)
    for array in tables.values():
        array.setflags(write=False)
    return {**tables, "num_samples": num_samples, "page_size": int(header["page_size"]), "field_names": names}


def _read_header(file: IO[bytes], path: Path, file_size: int) -> np.void:
    if file_size < HEADER.itemsize:
        raise _cut_short(path, HEADER.itemsize, file_size)
    header: np.void = np.fromfile(file, HEADER, 1)[0]
    if header["version"] != VERSION:
        raise BetonError(
            f"{path}: is no .beton file of version {VERSION} (it begins with {int(header['version'])}); "
            "give a file that write_dataset.py or FFCV 1.x wrote"
        )
    page_size = int(header["page_size"])
    if page_size == 0 or page_size & (page_size - 1):
        raise _damaged(path, f"its page size is {page_size:,} bytes, no power of two")
    if header["num_fields"] == 0:
        raise _damaged(path, "it has no fields")
    if header["alloc_table_ptr"] == 0:
        raise BetonError(f"{path}: is unfinished: its writing was broken off before the end; write it again")
    if header["num_samples"] == 0:
        raise BetonError(f"{path}: holds no samples; write it again")
    return header


def _find_field(path: Path, names: tuple[str, ...], type_ids: list[int], type_id: int, name: str) -> int:
    number = choose_field(names, type_ids, type_id, name)
    if number is None:
        kind = {TYPE_IMAGE: "RGBImageField", TYPE_INT: "IntField"}[type_id]
        raise BetonError(
            f"{path}: has no {name} field (an {kind}), only {', '.join(map(repr, names))}; give a file of "
            "labelled images"
        )
    return number


def _sizes_of(path: Path, offsets: np.ndarray, allocations: np.ndarray) -> np.ndarray:
    """The size in bytes (uint64) of the region at each offset, from the allocation table."""
    pointers, sizes = allocations["ptr"].astype(np.uint64), allocations["size"].astype(np.uint64)
    if not np.all(pointers[:-1] < pointers[1:]):  # FFCV's workers leave it unordered
        order = np.lexsort((sizes, pointers))  # an empty region shares its pointer: the larger one comes last
        pointers, sizes = pointers[order], sizes[order]
    found = np.searchsorted(pointers, offsets, side="right") - 1
    missing = (found < 0) | (pointers[found] != offsets)
    if missing.any():
        raise _damaged(path, f"the image of sample {int(missing.argmax())} is not in its allocation table")
    return sizes[found]


def _check_images(path: Path, tables: dict[str, np.ndarray], start: int, end: int) -> None:
    """Check every image's entry; the images lie between the bytes ``start`` and ``end``."""
    offsets, sizes, modes = tables["offsets"], tables["sizes"], tables["modes"]
    # Compared without adding offset and size, whose sum may not fit in 64 bits.
    outside = (offsets < start) | (sizes > end) | (offsets > end - np.minimum(sizes, end))
    pixels = tables["heights"].astype(np.uint64) * tables["widths"]
    for wrong, what in (
        (outside, "its bytes lie outside of the pages"),
        (sizes == 0, "it has no bytes"),
        (pixels == 0, "it has no pixels"),
        ((modes != MODE_JPG) & (modes != MODE_RAW), "it is neither stored as JPEG nor raw"),
        ((modes == MODE_RAW) & (sizes != 3 * pixels), "its bytes are not as many as its pixels ask for"),
    ):
        if wrong.any():
            raise _damaged(path, f"the image of sample {int(wrong.argmax())} cannot be right: {what}")
