"""Arrays as compiled code gets them: a table of where each lies and how long its sides are.

Every array is C-contiguous; which place in the table has which element type and how many dimensions is fixed,
by :func:`prototype`, when the kernel is compiled.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.scratch import (
    AxisTaps,
    RegionScratch,
    ResampleScratch,
    Tables,
    new_axis_taps,
    new_region_scratch,
    new_resample_scratch,
    new_table_store,
    new_tables,
)

FIELDS = 5
"""int64 numbers an array: its address and up to four sides."""


class Call(NamedTuple):
    """What changes from call to call.

    ``data`` uint8; of each crop where its JPEG starts and ends, the picture's height and width (``shapes`` int64
    ``[n, 2]``, zeros: any), its box int64 ``[n, 4]`` and whether it is mirrored, bool; ``out`` uint8
    ``[n, height, width, 3]`` and ``statuses`` uint8 ``[n]`` are filled.
    """

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    shapes: NDArray[np.int64]
    boxes: NDArray[np.int64]
    flips: NDArray[np.bool_]
    out: NDArray[np.uint8]
    statuses: NDArray[np.uint8]


class Workspace(NamedTuple):
    """What stays: a decoder's scratch. ``bits`` is uint8 ``[2, longest JPEG + BITS_ROOM]``."""

    tables: Tables
    region: RegionScratch
    bits: NDArray[np.uint8]
    taps: AxisTaps
    resample: ResampleScratch


def prototype() -> tuple[Call, Workspace]:
    """Arguments of the right types, of no use otherwise."""
    number, byte = np.zeros(1, np.int64), np.zeros(1, np.uint8)
    pairs, boxes = np.zeros((1, 2), np.int64), np.zeros((1, 4), np.int64)
    pictures = np.zeros((1, 1, 1, 3), np.uint8)
    call = Call(byte, number, number, pairs, boxes, np.zeros(1, np.bool_), pictures, byte)
    tables, region = new_tables(new_table_store()), new_region_scratch(1, 1)
    bits, taps = np.zeros((2, 1), np.uint8), new_axis_taps(1, 1, 1, 1)
    return call, Workspace(tables, region, bits, taps, new_resample_scratch(1, 1))


def describe(arguments: Any) -> NDArray[np.int64]:
    """The descriptors of a nest of named tuples of arrays, int64 ``[n, FIELDS]``."""
    arrays = list(arrays_of(arguments))
    table = np.zeros((len(arrays), FIELDS), np.int64)
    for row, array in zip(table, arrays, strict=True):
        assert array.flags.c_contiguous
        row[0] = array.__array_interface__["data"][0]
        row[1 : 1 + array.ndim] = array.shape
    return table


def arrays_of(arguments: Any) -> Iterator[NDArray[Any]]:
    """The arrays of a nest of named tuples, in order."""
    if isinstance(arguments, np.ndarray):
        yield arguments
        return
    for argument in arguments:
        yield from arrays_of(argument)


def kinds(arguments: Any) -> list[tuple[Any, int]]:
    """Element type and number of dimensions of each array."""
    return [(array.dtype, array.ndim) for array in arrays_of(arguments)]
