"""Arrays over memory that somebody else owns and keeps."""

from typing import Any

import numpy as np


class _Region:
    """NumPy's protocol for such memory (``__array_interface__``)."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: str, *, read_only: bool) -> None:
        self.__array_interface__ = {"data": (address, read_only), "shape": shape, "typestr": dtype, "version": 3}


def array_from_pointer(address: int, shape: tuple[int, ...], dtype: str, *, read_only: bool) -> np.ndarray[Any, Any]:
    """The memory at ``address`` as an array; ``dtype`` as NumPy writes it, "<i8" or "|u1"."""
    return np.asarray(_Region(address, shape, dtype, read_only=read_only))
