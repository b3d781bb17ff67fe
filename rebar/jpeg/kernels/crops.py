"""The kernel of :class:`rebar.jpeg.crop_decoder.CropDecoder`: decode, crop, resize and flip one JPEG after another."""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.kernels.headers import parse_header
from rebar.jpeg.kernels.jit import compiled
from rebar.jpeg.kernels.region import decode_region
from rebar.jpeg.kernels.resize import resize_columns, write_rows
from rebar.jpeg.kernels.resize_weights import (
    COLUMN_UNITY,
    FANCY_UPSAMPLING,
    FULL_RESOLUTION,
    PLAIN_UPSAMPLING,
    ROW_UNITY,
    set_extents,
    set_resize_weights,
)
from rebar.jpeg.status import OK, WRONG_SIZE, Header
from rebar.jpeg.workspace import AxisWeights, Call, RegionScratch, ResizeScratch, Workspace


@compiled
def decode_crops(call: Call, workspace: Workspace) -> None:
    """Decode all crops of a call and store their statuses in ``call.statuses``."""
    for i in range(call.starts.size):
        call.statuses[i] = _decode_crop(call, i, workspace)


@compiled
def _decode_crop(call: Call, i: int, workspace: Workspace) -> int:
    tables, region, weights = workspace.tables, workspace.region, workspace.weights
    end, box, out = call.ends[i], call.boxes[i], call.out[i]
    status, header = parse_header(call.data, call.starts[i], end, tables)
    if status != OK:
        return status
    if not _fits(header, call.shapes[i], box, region):
        return WRONG_SIZE
    _set_axis_weights(weights, header, box, call.flips[i], out.shape[0], out.shape[1])
    for c in range(header.components):
        x, y = (weights.luma_x, weights.luma_y) if c == 0 else (weights.chroma_x, weights.chroma_y)
        region.needed[c, 0], region.needed[c, 1] = x.span[0], x.span[1]
        region.needed[c, 2], region.needed[c, 3] = y.span[0], y.span[1]
    status = decode_region(call.data, end, header, tables, region, workspace.bits)
    if status == OK:
        _resize(header, region, weights, workspace.resize, out)
    return status


@compiled
def _fits(header: Header, shape: NDArray[np.int64], box: NDArray[np.int64], region: RegionScratch) -> bool:
    """Return whether the image has the expected shape and fits the scratch memory, and the box is inside the image."""
    if shape[0] != 0 and (header.height != shape[0] or header.width != shape[1]):
        return False
    top, left, height, width = box[0], box[1], box[2], box[3]
    if header.height > region.max_size[0] or header.width > region.max_size[1]:
        return False
    if not (0 <= top < header.height and 0 <= left < header.width):
        return False
    return 1 <= height <= header.height - top and 1 <= width <= header.width - left


@compiled
def _set_axis_weights(
    weights: AxisWeights, header: Header, box: NDArray[np.int64], flip: bool, out_height: int, out_width: int
) -> None:
    top, left, height, width = box[0], box[1], box[2], box[3]
    area = height >= out_height and width >= out_width
    set_extents(weights.x, out_width, width, area, flip)
    # ``width < 0`` is False; for a literal, numba would compile set_extents a second time.
    set_extents(weights.y, out_height, height, area, width < 0)
    set_resize_weights(weights.luma_x, weights.x, left, FULL_RESOLUTION, header.width, COLUMN_UNITY)
    set_resize_weights(weights.luma_y, weights.y, top, FULL_RESOLUTION, header.height, ROW_UNITY)
    if header.components > 1:
        h_samp, v_samp = header.h_samp, header.v_samp
        chroma_width, chroma_height = -(-header.width // h_samp), -(-header.height // v_samp)
        # libjpeg does not interpolate chroma rows of one or two samples, unless only y is subsampled.
        far = FANCY_UPSAMPLING if chroma_width > 2 or h_samp == 1 else PLAIN_UPSAMPLING
        far_x, far_y = far if h_samp == 2 else FULL_RESOLUTION, far if v_samp == 2 else FULL_RESOLUTION
        set_resize_weights(weights.chroma_x, weights.x, left, far_x, chroma_width, COLUMN_UNITY)
        set_resize_weights(weights.chroma_y, weights.y, top, far_y, chroma_height, ROW_UNITY)


@compiled
def _resize(
    header: Header, region: RegionScratch, weights: AxisWeights, scratch: ResizeScratch, out: NDArray[np.uint8]
) -> None:
    """Resize the decoded planes and convert them to RGB."""
    for c in range(header.components):
        x, y = (weights.luma_x, weights.luma_y) if c == 0 else (weights.chroma_x, weights.chroma_y)
        left, top, stride = region.layout[c, 0], region.layout[c, 1], region.layout[c, 2]
        if c < 2:  # Cb and Cr use the same weights
            for i in range(x.first.size):
                x.first[i] -= left
            for i in range(y.first.size):
                y.first[i] -= top
        resize_columns(region.planes[c], stride, y.span[0] - top, y.span[1] - top, x, scratch.lines[c])
    write_rows(scratch.lines, weights.luma_y, weights.chroma_y, header.components == 1, scratch.pixels, out)
