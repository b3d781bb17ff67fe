"""Array descriptors: how NumPy arrays are passed to compiled kernels.

A kernel gets one int64 table with the address and shape of each array. Element types and numbers of dimensions are
fixed when the kernel is compiled.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

DESCRIPTOR_FIELDS = 5
"""int64 fields of a descriptor: the address and up to four dimensions."""


def descriptors(arguments: Any) -> NDArray[np.int64]:
    """Return the descriptors of C-contiguous arrays in nested named tuples, int64 ``[arrays, DESCRIPTOR_FIELDS]``."""
    arrays = list(flatten_arrays(arguments))
    table = np.zeros((len(arrays), DESCRIPTOR_FIELDS), np.int64)
    for row, array in zip(table, arrays, strict=True):
        assert array.flags.c_contiguous
        row[0] = array.__array_interface__["data"][0]
        row[1 : 1 + array.ndim] = array.shape
    return table


def array_types(arguments: Any) -> list[tuple[Any, int]]:
    """Return the dtype and number of dimensions of each array in nested named tuples."""
    return [(array.dtype, array.ndim) for array in flatten_arrays(arguments)]


def flatten_arrays(arguments: Any) -> Iterator[NDArray[Any]]:
    """Yield the arrays of nested named tuples, in order."""
    if isinstance(arguments, np.ndarray):
        yield arguments
        return
    for argument in arguments:
        yield from flatten_arrays(argument)
