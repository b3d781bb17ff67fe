"""Which fields a .beton has, of which types."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rebar.beton.fields import choose_field, field_names
from rebar.beton.format import FIELD_DESCRIPTOR, HEADER, TYPE_IMAGE, TYPE_INT, VERSION, BetonError
from rebar.beton.reader import BetonFile


def field_types(path: Path) -> dict[str, int]:
    """The type id of every field, in the file's order. Raises BetonError for what is no .beton file."""
    try:
        with path.open("rb") as file:
            (header,) = np.fromfile(file, HEADER, 1)
            descriptors = np.fromfile(file, FIELD_DESCRIPTOR, int(header["num_fields"]))
    except (OSError, ValueError):
        BetonFile.open(path)  # says what is wrong
        raise
    if header["version"] != VERSION:
        BetonFile.open(path)
        raise BetonError(f"{path}: is no .beton file of version {VERSION}")
    return dict(zip(field_names(descriptors), descriptors["type_id"].tolist(), strict=True))


def picture_and_label(types: Mapping[str, int]) -> tuple[str | None, str | None]:
    """The fields that :class:`rebar.beton.BetonFile` reads: those called so, else the first of the type."""
    names, type_ids = list(types), list(types.values())
    chosen = (choose_field(names, type_ids, *wanted) for wanted in ((TYPE_IMAGE, "image"), (TYPE_INT, "label")))
    image, label = (None if number is None else names[number] for number in chosen)
    return image, label
