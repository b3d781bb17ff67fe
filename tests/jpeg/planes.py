"""Decode a region of a JPEG to its YCbCr planes as NumPy arrays."""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.format import OK, WRONG_SIZE, Header, Status
from rebar.jpeg.kernel_arguments import (
    BITS_MARGIN,
    RegionScratch,
    Tables,
    new_region_scratch,
    new_table_store,
    new_tables,
)
from rebar.jpeg.kernels.crops import decode_region
from rebar.jpeg.kernels.jit import kernel, read_only
from rebar.jpeg.kernels.markers import parse_header


def decode_planes(
    jpeg: NDArray[np.uint8], box: tuple[int, int, int, int], max_height: int, max_width: int
) -> tuple[Status, list[NDArray[np.uint8]]]:
    """Decode the samples of each component that the pixels of ``box`` (top, left, height, width) need.

    Returns the status and, if it is OK, one uint8 ``[height, width]`` array per component, bit-identical to that region
    of libjpeg-turbo's full-image decoding with the accurate integer DCT.
    """
    tables, scratch = new_tables(new_table_store()), new_region_scratch(max_height, max_width)
    bits = np.zeros((2, jpeg.size + BITS_MARGIN), np.uint8)
    status, header = _decode_planes(read_only(jpeg), np.array(box, np.int64), tables, scratch, bits)
    planes = []
    for c in range(header.components if status == OK else 0):
        left, top, stride = scratch.layout[c]
        x0, x1, y0, y1 = scratch.needed[c]
        columns = scratch.planes[c][: (x1 - left) * stride].reshape(-1, stride)
        planes.append(columns[x0 - left :, y0 - top : y1 - top].T.copy())
    return Status(status), planes


@kernel
def _decode_planes(
    data: NDArray[np.uint8],
    box: NDArray[np.int64],
    tables: Tables,
    scratch: RegionScratch,
    bits: NDArray[np.uint8],
) -> tuple[int, Header]:
    """Decode the planes that ``box`` needs into ``scratch``; return the status and the header."""
    status, header = parse_header(data, 0, data.size, tables)
    if status != OK:
        return status, header
    if header.height > scratch.max_size[0] or header.width > scratch.max_size[1]:
        return WRONG_SIZE, header
    top, left, height, width = box[0], box[1], box[2], box[3]
    for c in range(header.components):
        h_samp, v_samp = (1, 1) if c == 0 else (header.h_samp, header.v_samp)
        scratch.needed[c, 0], scratch.needed[c, 1] = left // h_samp, -(-(left + width) // h_samp)
        scratch.needed[c, 2], scratch.needed[c, 3] = top // v_samp, -(-(top + height) // v_samp)
    return decode_region(data, data.size, header, tables, scratch, bits), header
