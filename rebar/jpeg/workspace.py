"""The memory that a decoder works in: plain NumPy arrays, made here and handed to the kernels.

Nothing here needs numba, so that a process which only runs the compiled kernels never imports it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

COMPONENTS = 3
SPECIFICATION_BYTES = 16 + 256  # of a Huffman table: how many codes of each length, then their symbols
TABLE_SLOTS = 16
SHORT_BITS = 10  # what a short Huffman table is looked up by
LANES = 2  # segments decoded side by side
LANE_FIELDS = 16  # of a lane's state: two cache lines
LANE_WORK = 4
CHUNK = 8  # units decoded to coefficients before they are transformed: these stay in the L1 cache
MOST_BLOCKS = 6  # of a unit
MOST_SYMBOL_BITS = 27  # a Huffman code of 16 and a magnitude of 11
SCRATCH_PADDING = 64  # bytes of zeros behind a segment's bits
SURPLUS = 8  # columns behind a plane's last one that may be read, with weight zero
ALIGNMENT = 32  # a plane's columns are padded to multiples of this, and may be read so
TILE = 8  # output columns made together
ROWS = 32  # of those: made together, planes are padded to as many
PIXELS = 32  # of an output row, made together


def room_behind(blocks: int) -> int:
    """How many bytes beyond a segment's end ``blocks`` can make a lane read."""
    return blocks * 64 * MOST_SYMBOL_BITS // 8 + 32


BITS_ROOM = room_behind(CHUNK * MOST_BLOCKS) + SCRATCH_PADDING  # behind a lane's bits


class TableStore(NamedTuple):
    """The Huffman tables of the last specifications met.

    ``specifications`` uint8 ``[slots, 272]``, ``classes`` uint8 ``[slots]`` (DC, AC; 255: empty), ``short``
    uint32 ``[slots * 2**SHORT_BITS]``, ``long`` uint16 ``[slots * 2**16]``, ``last_use`` int64 ``[slots]``:
    larger is more recent.
    """

    specifications: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    short: NDArray[np.uint32]
    long: NDArray[np.uint16]
    last_use: NDArray[np.int64]


def new_table_store() -> TableStore:
    """An empty one."""
    return TableStore(
        np.zeros((TABLE_SLOTS, SPECIFICATION_BYTES), np.uint8),
        np.full(TABLE_SLOTS, 255, np.uint8),
        np.zeros(TABLE_SLOTS << SHORT_BITS, np.uint32),
        np.zeros(TABLE_SLOTS << 16, np.uint16),
        np.zeros(TABLE_SLOTS, np.int64),
    )


class Tables(NamedTuple):
    """A header's tables.

    ``quantization`` int16 ``[4, 64]`` as the file numbers them, in natural order, and ``quantization_known``;
    ``specifications`` uint8 ``[2, 4, 272]`` by class and number, and ``specifications_known``; ``components``
    int64 ``[3, 6]``: id, horizontal and vertical sampling, quantisation table, then DC and AC slot in ``store``.
    """

    quantization: NDArray[np.int16]
    quantization_known: NDArray[np.bool_]
    specifications: NDArray[np.uint8]
    specifications_known: NDArray[np.bool_]
    components: NDArray[np.int64]
    store: TableStore


def new_tables(store: TableStore) -> Tables:
    """Empty ones around a table store."""
    return Tables(
        np.zeros((4, 64), np.int16),
        np.zeros(4, np.bool_),
        np.zeros((2, 4, SPECIFICATION_BYTES), np.uint8),
        np.zeros((2, 4), np.bool_),
        np.zeros((COMPONENTS, 6), np.int64),
        store,
    )


class RegionScratch(NamedTuple):
    """Where a region is decoded, of images up to a size.

    ``limits`` int64 ``[2]``: the largest height and width. ``needed`` int64 ``[3, 4]``, set by the caller: the
    samples x0, x1, y0, y1 (half-open, in each component's own grid) that are wanted. ``planes`` uint8
    ``[3, capacity]`` holds them column by column: sample (x, y) at ``(x - left) * stride + y - top``, where
    ``frame`` int64 ``[3, 3]`` is left, top, stride. The rest belongs to the decoding: where segments start and
    end, and of each lane its state, its work, its DC predictions, coefficients, and where its blocks ended.
    """

    limits: NDArray[np.int64]
    needed: NDArray[np.int64]
    planes: NDArray[np.uint8]
    frame: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    coefficients: NDArray[np.int16]
    block_ends: NDArray[np.uint8]
    dc_tables: NDArray[np.uint64]
    ac_tables: NDArray[np.uint64]
    lanes: NDArray[np.uint64]
    work: NDArray[np.int64]
    predictions: NDArray[np.int64]


def new_region_scratch(max_height: int, max_width: int) -> RegionScratch:
    """Room for images of up to that many pixels."""
    high, wide = _round_up(max_height, 16), _round_up(max_width, 16)
    most_segments = (high // 8) * (wide // 8) + 1
    blocks = CHUNK * MOST_BLOCKS
    return RegionScratch(
        np.array([max_height, max_width], np.int64),
        np.zeros((COMPONENTS, 4), np.int64),
        np.zeros((COMPONENTS, (wide + SURPLUS) * _round_up(high, ALIGNMENT) + ALIGNMENT), np.uint8),
        np.zeros((COMPONENTS, 3), np.int64),
        np.zeros(most_segments, np.int64),
        np.zeros(most_segments, np.int64),
        np.zeros((LANES, blocks * 64), np.int16),
        np.zeros((LANES, blocks + 1), np.uint8),
        np.zeros(blocks + 1, np.uint64),
        np.zeros(blocks + 1, np.uint64),
        np.zeros((LANES, LANE_FIELDS), np.uint64),
        np.zeros((LANES, LANE_WORK), np.int64),
        np.zeros((LANES, COMPONENTS), np.int64),
    )


class Extents(NamedTuple):
    """What each output pixel covers along one axis, float64 ``[n]``, n rounded up to TILE, where the surplus repeats
    the last one: from ``begin`` to ``behind``, in pixels from the crop's first; ``per_pixel`` is a pixel's share."""

    begin: NDArray[np.float64]
    behind: NDArray[np.float64]
    per_pixel: NDArray[np.float64]


def new_extents(outputs: int) -> Extents:
    """Room for ``outputs`` pixels."""
    begin, behind, per_pixel = np.zeros((3, _round_up(outputs, TILE)), np.float64)
    return Extents(begin, behind, per_pixel)


class ResizeWeights(NamedTuple):
    """Of each output pixel along one axis, n as in :class:`Extents`:

    ``first`` int64 ``[n]`` sample, ``weights`` uint16 ``[most, n]`` of the samples from there on. ``span`` int64
    ``[3]``: the first sample of all, the one behind the last, and how many weights of a pixel count.
    """

    first: NDArray[np.int64]
    weights: NDArray[np.uint16]
    span: NDArray[np.int64]


def new_resize_weights(outputs: int, size: int) -> ResizeWeights:
    """Room for ``outputs`` pixels made from up to ``size``."""
    entries = _round_up(outputs, TILE)
    weights = np.zeros((size // outputs + 4, entries), np.uint16)
    return ResizeWeights(np.zeros(entries, np.int64), weights, np.zeros(3, np.int64))


class AxisWeights(NamedTuple):
    """What output pixels cover along x and y, and the luma and chroma taps for that."""

    x: Extents
    y: Extents
    luma_x: ResizeWeights
    luma_y: ResizeWeights
    chroma_x: ResizeWeights
    chroma_y: ResizeWeights


def new_axis_weights(out_height: int, out_width: int, max_height: int, max_width: int) -> AxisWeights:
    """Room for crops of images up to ``max_height`` by ``max_width``, resized to ``out_height`` by ``out_width``."""
    x, y = (out_width, max_width), (out_height, max_height)
    return AxisWeights(
        new_extents(out_width), new_extents(out_height), *(new_resize_weights(*axis) for axis in (x, y, x, y))
    )


class ResampleScratch(NamedTuple):
    """``lines`` uint16 ``[3, rows, pitch]``: each component resized along x; ``pixels`` uint8 ``[96]``, for rows
    shorter than that."""

    lines: NDArray[np.uint16]
    pixels: NDArray[np.uint8]


def new_resample_scratch(out_width: int, max_height: int) -> ResampleScratch:
    """Room to make images ``out_width`` wide from regions of images up to ``max_height``."""
    rows = _round_up(max_height, 16) + ROWS + SURPLUS
    lines = np.zeros((COMPONENTS, rows, _round_up(out_width, PIXELS)), np.uint16)
    return ResampleScratch(lines, np.zeros(3 * PIXELS, np.uint8))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
