"""Which fields a .beton has, of which types."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

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
    names = [bytes(raw).split(b"\0")[0].decode("ascii", "backslashreplace") for raw in descriptors["name"]]
    return dict(zip(names, descriptors["type_id"].tolist(), strict=True))


def picture_and_label(types: Mapping[str, int]) -> tuple[str | None, str | None]:
    """The fields that :class:`rebar.beton.BetonFile` reads: those called so, else the first of the type."""
    return _named_or_first(types, TYPE_IMAGE, "image"), _named_or_first(types, TYPE_INT, "label")


def _named_or_first(types: Mapping[str, int], type_id: int, name: str) -> str | None:
    candidates = [found for found in types if types[found] == type_id]
    return name if name in candidates else next(iter(candidates), None)
