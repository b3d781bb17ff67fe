"""Crop after crop: the kernel that :class:`rebar.jpeg.crop_decoder.CropDecoder` runs.

Imported only where it is compiled (:mod:`rebar.jpeg.kernel_cache`).
"""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.kernel_cache import Call, Workspace
from rebar.jpeg.kernels.headers import parse_header
from rebar.jpeg.kernels.jit import compiled
from rebar.jpeg.kernels.region import decode_region
from rebar.jpeg.kernels.resize import resize_columns, write_rows
from rebar.jpeg.kernels.resize_weights import (
    COLUMN_ONE,
    FANCY,
    REPLICATED,
    ROW_ONE,
    WHOLE,
    set_extents,
    set_resize_weights,
)
from rebar.jpeg.status import OK, WRONG_SIZE, Header
from rebar.jpeg.workspace import AxisWeights, RegionScratch, ResampleScratch


@compiled
def decode_crops(call: Call, workspace: Workspace) -> None:
    """Decode crop after crop, the status of each into ``call.statuses``."""
    for i in range(call.starts.size):
        call.statuses[i] = _decode_crop(call, i, workspace)


@compiled
def _decode_crop(call: Call, i: int, workspace: Workspace) -> int:
    tables, region, taps = workspace.tables, workspace.region, workspace.taps
    end, box, out = call.ends[i], call.boxes[i], call.out[i]
    status, header = parse_header(call.data, call.starts[i], end, tables)
    if status != OK:
        return status
    if not _fits(header, call.shapes[i], box, region):
        return WRONG_SIZE
    _set_axis_taps(taps, header, box, call.flips[i], out.shape[0], out.shape[1])
    for c in range(header.components):
        x, y = (taps.luma_x, taps.luma_y) if c == 0 else (taps.chroma_x, taps.chroma_y)
        region.needed[c, 0], region.needed[c, 1] = x.span[0], x.span[1]
        region.needed[c, 2], region.needed[c, 3] = y.span[0], y.span[1]
    status = decode_region(call.data, end, header, tables, region, workspace.bits)
    if status == OK:
        _resample(header, region, taps, workspace.resample, out)
    return status


@compiled
def _fits(header: Header, shape: NDArray[np.int64], box: NDArray[np.int64], region: RegionScratch) -> bool:
    """Whether the image has the shape that was told, if any was, and lies in the scratch, and the box in it."""
    if shape[0] != 0 and (header.height != shape[0] or header.width != shape[1]):
        return False
    top, left, height, width = box[0], box[1], box[2], box[3]
    if header.height > region.limits[0] or header.width > region.limits[1]:
        return False
    if not (0 <= top < header.height and 0 <= left < header.width):
        return False
    return 1 <= height <= header.height - top and 1 <= width <= header.width - left


@compiled
def _set_axis_taps(
    taps: AxisWeights, header: Header, box: NDArray[np.int64], flip: bool, out_height: int, out_width: int
) -> None:
    top, left, height, width = box[0], box[1], box[2], box[3]
    area = height >= out_height and width >= out_width
    set_extents(taps.x, out_width, width, area, flip)
    set_extents(taps.y, out_height, height, area, width < 0)  # never: a constant would be compiled for by itself
    set_resize_weights(taps.luma_x, taps.x, left, WHOLE, header.width, COLUMN_ONE)
    set_resize_weights(taps.luma_y, taps.y, top, WHOLE, header.height, ROW_ONE)
    if header.components > 1:
        h_samp, v_samp = header.h_samp, header.v_samp
        chroma_width, chroma_height = -(-header.width // h_samp), -(-header.height // v_samp)
        # libjpeg does not interpolate chroma rows of one or two samples, but for those halved along y only.
        far = FANCY if chroma_width > 2 or h_samp == 1 else REPLICATED
        far_x, far_y = far if h_samp == 2 else WHOLE, far if v_samp == 2 else WHOLE
        set_resize_weights(taps.chroma_x, taps.x, left, far_x, chroma_width, COLUMN_ONE)
        set_resize_weights(taps.chroma_y, taps.y, top, far_y, chroma_height, ROW_ONE)


@compiled
def _resample(
    header: Header, region: RegionScratch, taps: AxisWeights, resample: ResampleScratch, out: NDArray[np.uint8]
) -> None:
    """The decoded planes to ``out``."""
    for c in range(header.components):
        x, y = (taps.luma_x, taps.luma_y) if c == 0 else (taps.chroma_x, taps.chroma_y)
        left, top, stride = region.frame[c, 0], region.frame[c, 1], region.frame[c, 2]
        if c < 2:  # both chroma components share theirs
            for i in range(x.first.size):
                x.first[i] -= left
            for i in range(y.first.size):
                y.first[i] -= top
        resize_columns(region.planes[c], stride, y.span[0] - top, y.span[1] - top, x, resample.lines[c])
    write_rows(resample.lines, taps.luma_y, taps.chroma_y, header.components == 1, resample.pixels, out)
