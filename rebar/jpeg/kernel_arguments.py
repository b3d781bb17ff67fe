"""The arguments and scratch memory of the crop decoder's kernel, and how arrays are passed to compiled kernels.

Arguments are nested named tuples of NumPy arrays. A compiled kernel gets one int64 table with the descriptor of each
array: its address and shape. Element types and numbers of dimensions are fixed when the kernel is compiled. This
module does not import numba, so that processes that only run compiled kernels do not load it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

COMPONENTS = 3
SPECIFICATION_BYTES = 16 + 256  # a Huffman table: the number of codes of each length, then the symbols
TABLE_SLOTS = 16
SHORT_BITS = 10  # index bits of a short Huffman table
LANES = 2  # segments that one thread decodes in parallel
LANE_FIELDS = 16  # the state of a lane: two cache lines
LANE_WORK = 4
CHUNK_MCUS = 8  # MCUs decoded to coefficients before the inverse DCT: the coefficients stay in the L1 cache
MAX_BLOCKS = 6  # in an MCU
MAX_SYMBOL_BITS = 27  # a Huffman code of 16 and a magnitude of 11
SCRATCH_PADDING = 64  # zero bytes after a segment's bits
COLUMN_MARGIN = 8  # columns after a plane's last one that may be read, with weight zero
ALIGNMENT = 32  # plane columns are padded to multiples of this many bytes
TILE_COLUMNS = 8  # output columns computed together
TILE_ROWS = 32  # rows computed together
TILE_PIXELS = 32  # output pixels of a row computed together
DESCRIPTOR_FIELDS = 5  # int64: the address and up to four dimensions


def read_ahead_bytes(blocks: int) -> int:
    """Return how many bytes past the end of a segment a lane may read while it decodes ``blocks``."""
    return blocks * 64 * MAX_SYMBOL_BITS // 8 + 32


BITS_MARGIN = read_ahead_bytes(CHUNK_MCUS * MAX_BLOCKS) + SCRATCH_PADDING  # bytes after a lane's bits


class TableStore(NamedTuple):
    """A least-recently-used cache of Huffman lookup tables (:mod:`rebar.jpeg.kernels.huffman`).

    ``specifications`` is uint8 ``[slots, 272]``, ``classes`` uint8 ``[slots]`` (DC or AC; 255: empty), ``short``
    uint32 ``[slots * 2**SHORT_BITS]``, ``long`` uint16 ``[slots * 2**16]``, and ``last_use`` int64 ``[slots]``, where
    larger is more recent.
    """

    specifications: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    short: NDArray[np.uint32]
    long: NDArray[np.uint16]
    last_use: NDArray[np.int64]


def new_table_store() -> TableStore:
    """Return an empty table store."""
    return TableStore(
        np.zeros((TABLE_SLOTS, SPECIFICATION_BYTES), np.uint8),
        np.full(TABLE_SLOTS, 255, np.uint8),
        np.zeros(TABLE_SLOTS << SHORT_BITS, np.uint32),
        np.zeros(TABLE_SLOTS << 16, np.uint16),
        np.zeros(TABLE_SLOTS, np.int64),
    )


class Tables(NamedTuple):
    """The tables of a JPEG header.

    ``quantization`` is int16 ``[4, 64]`` by table number, in natural order; ``specifications`` is uint8
    ``[2, 4, 272]`` by Huffman table class and number. The ``..._known`` arrays mark those that the file defines.
    ``components`` is int64 ``[3, 6]``: id, horizontal and vertical sampling factor, quantization table number, then
    the slots of the DC and AC table in ``store``.
    """

    quantization: NDArray[np.int16]
    quantization_known: NDArray[np.bool_]
    specifications: NDArray[np.uint8]
    specifications_known: NDArray[np.bool_]
    components: NDArray[np.int64]
    store: TableStore


def new_tables(store: TableStore) -> Tables:
    """Return empty tables that use a table store."""
    return Tables(
        np.zeros((4, 64), np.int16),
        np.zeros(4, np.bool_),
        np.zeros((2, 4, SPECIFICATION_BYTES), np.uint8),
        np.zeros((2, 4), np.bool_),
        np.zeros((COMPONENTS, 6), np.int64),
        store,
    )


class RegionScratch(NamedTuple):
    """Scratch memory to decode a region of an image.

    ``max_size`` int64 ``[2]`` is the largest height and width. ``needed`` int64 ``[3, 4]`` is set by the caller: the
    samples x0, x1, y0, y1 (half-open, in each component's own grid) to decode. ``planes`` uint8 ``[3, capacity]`` holds
    them column by column: sample (x, y) is at ``(x - left) * stride + y - top``, where ``layout`` int64 ``[3, 3]`` is
    left, top, stride. The other arrays are private to the kernel: the start and end of the segments and, for each
    lane, its state, progress, DC predictions, coefficients, and the end of each block.
    """

    max_size: NDArray[np.int64]
    needed: NDArray[np.int64]
    planes: NDArray[np.uint8]
    layout: NDArray[np.int64]
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
    """Return scratch memory for images up to a height and width in pixels."""
    height, width = _round_up(max_height, 16), _round_up(max_width, 16)
    max_segments = (height // 8) * (width // 8) + 1
    blocks = CHUNK_MCUS * MAX_BLOCKS
    return RegionScratch(
        np.array([max_height, max_width], np.int64),
        np.zeros((COMPONENTS, 4), np.int64),
        np.zeros((COMPONENTS, (width + COLUMN_MARGIN) * _round_up(height, ALIGNMENT) + ALIGNMENT), np.uint8),
        np.zeros((COMPONENTS, 3), np.int64),
        np.zeros(max_segments, np.int64),
        np.zeros(max_segments, np.int64),
        np.zeros((LANES, blocks * 64), np.int16),
        np.zeros((LANES, blocks + 1), np.uint8),
        np.zeros(blocks + 1, np.uint64),
        np.zeros(blocks + 1, np.uint64),
        np.zeros((LANES, LANE_FIELDS), np.uint64),
        np.zeros((LANES, LANE_WORK), np.int64),
        np.zeros((LANES, COMPONENTS), np.int64),
    )


class Extents(NamedTuple):
    """The interval that each output pixel covers along one axis, float64 ``[n]``.

    ``begin`` and ``end`` are in pixels from the start of the crop; ``pixel_weight`` is the weight of one pixel. n is
    rounded up to TILE_COLUMNS; the padding repeats the last interval.
    """

    begin: NDArray[np.float64]
    end: NDArray[np.float64]
    pixel_weight: NDArray[np.float64]


def new_extents(outputs: int) -> Extents:
    """Return memory for ``outputs`` pixels."""
    begin, end, pixel_weight = np.zeros((3, _round_up(outputs, TILE_COLUMNS)), np.float64)
    return Extents(begin, end, pixel_weight)


class ResizeWeights(NamedTuple):
    """The samples and weights of each output pixel along one axis, with n as in :class:`Extents`.

    Pixel i is the sum of ``weights[t, i]`` times sample ``first[i] + t``; ``first`` is int64 ``[n]``, ``weights``
    uint16 ``[max, n]``. ``span`` int64 ``[3]`` is the first sample of all pixels, the end of the last, and the number
    of rows of ``weights`` in use.
    """

    first: NDArray[np.int64]
    weights: NDArray[np.uint16]
    span: NDArray[np.int64]


def new_resize_weights(outputs: int, size: int) -> ResizeWeights:
    """Return memory for ``outputs`` pixels computed from up to ``size`` pixels."""
    entries = _round_up(outputs, TILE_COLUMNS)
    weights = np.zeros((size // outputs + 4, entries), np.uint16)
    return ResizeWeights(np.zeros(entries, np.int64), weights, np.zeros(3, np.int64))


class AxisWeights(NamedTuple):
    """The extents of the output pixels along x and y, and the luma and chroma weights for them."""

    x: Extents
    y: Extents
    luma_x: ResizeWeights
    luma_y: ResizeWeights
    chroma_x: ResizeWeights
    chroma_y: ResizeWeights


def new_axis_weights(out_height: int, out_width: int, max_height: int, max_width: int) -> AxisWeights:
    """Return memory for crops of images up to ``max_height`` by ``max_width``, resized to the output size."""
    x, y = (out_width, max_width), (out_height, max_height)
    return AxisWeights(
        new_extents(out_width), new_extents(out_height), *(new_resize_weights(*axis) for axis in (x, y, x, y))
    )


class ResizeScratch(NamedTuple):
    """Scratch memory of the resize kernels.

    ``lines`` uint16 ``[3, rows, pitch]`` holds each component resized along x; ``pixels`` uint8 ``[96]`` buffers
    output rows shorter than TILE_PIXELS.
    """

    lines: NDArray[np.uint16]
    pixels: NDArray[np.uint8]


def new_resize_scratch(out_width: int, max_height: int) -> ResizeScratch:
    """Return scratch memory for outputs ``out_width`` wide and images up to ``max_height`` high."""
    rows = _round_up(max_height, 16) + TILE_ROWS + COLUMN_MARGIN
    lines = np.zeros((COMPONENTS, rows, _round_up(out_width, TILE_PIXELS)), np.uint16)
    return ResizeScratch(lines, np.zeros(3 * TILE_PIXELS, np.uint8))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class Call(NamedTuple):
    """The arguments of ``decode_crops`` that change from call to call, for n crops.

    JPEG i is ``data[starts[i] : ends[i]]``. ``shapes`` int64 ``[n, 2]`` is the expected height and width, zeros for
    any; ``boxes`` int64 ``[n, 4]`` is top, left, height, width; ``flips`` bool ``[n]`` requests a horizontal flip.
    ``out`` uint8 ``[n, height, width, 3]`` and ``statuses`` uint8 ``[n]`` are written.
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
    """The scratch memory of a decoder. ``bits`` is uint8 ``[2, longest JPEG + BITS_MARGIN]``."""

    tables: Tables
    region: RegionScratch
    bits: NDArray[np.uint8]
    weights: AxisWeights
    resize: ResizeScratch


def prototype_arguments() -> tuple[Call, Workspace]:
    """Return minimal arguments of ``decode_crops`` with the right dtypes and dimensions, for its compilation."""
    integers, byte = np.zeros(1, np.int64), np.zeros(1, np.uint8)
    pairs, boxes = np.zeros((1, 2), np.int64), np.zeros((1, 4), np.int64)
    images = np.zeros((1, 1, 1, 3), np.uint8)
    call = Call(byte, integers, integers, pairs, boxes, np.zeros(1, np.bool_), images, byte)
    tables, region = new_tables(new_table_store()), new_region_scratch(1, 1)
    bits, weights = np.zeros((2, 1), np.uint8), new_axis_weights(1, 1, 1, 1)
    return call, Workspace(tables, region, bits, weights, new_resize_scratch(1, 1))


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
