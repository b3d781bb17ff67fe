"""The fields of a .beton: their names, and which of them is the picture and which the label."""

from collections.abc import Sequence

import numpy as np


def field_names(descriptors: np.ndarray) -> tuple[str, ...]:
    """The names in field descriptors, as text whatever their bytes are."""
    return tuple(bytes(raw).split(b"\0")[0].decode("ascii", "backslashreplace") for raw in descriptors["name"])


def choose_field(names: Sequence[str], type_ids: Sequence[int], type_id: int, name: str) -> int | None:
    """The number of the field of this type and name, else of the first field of this type, if there is one."""
    candidates = [number for number, found in enumerate(type_ids) if found == type_id]
    return next((number for number in candidates if names[number] == name), next(iter(candidates), None))
