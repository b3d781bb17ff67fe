"""Compute the resize weights: cv2's INTER_AREA, combined with libjpeg's chroma upsampling into one filter.

Along each axis, an output pixel is a weighted sum of neighboring pixels of the crop, with the weights of
``cv2.resize(..., INTER_AREA)``. If the chroma is subsampled along that axis, each of these pixels is itself 3/4 of the
nearer and 1/4 of the farther chroma sample (libjpeg's "fancy upsampling"). Both filters are composed into one over the
chroma samples, so that chroma is never upsampled.
"""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.format import Header
from rebar.jpeg.kernel_arguments import AxisWeights, Extents, ResizeWeights
from rebar.jpeg.kernels.jit import compiled

COLUMN_UNITY = 256  # the sum of the weights along x: 8-bit samples become 8.8 fixed point in 16 bits
FULL_RESOLUTION = -1.0
FANCY_UPSAMPLING, PLAIN_UPSAMPLING = 0.25, 0.0  # weight of the farther sample in libjpeg's two ways to upsample chroma
ROW_UNITY = 65535  # the sum of the weights along y: the product's high 16 bits are in 8.8 again
_SNAP = 1e-3  # pixels: as in cv2, an edge this close to a pixel's edge is moved onto it


@compiled
def set_axis_weights(
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
def set_extents(extents: Extents, outputs: int, size: int, area: bool, flip: bool) -> None:
    """Set the interval that each output pixel covers when ``size`` pixels become ``outputs``, reversed if ``flip``.

    ``area`` is whether neither axis is enlarged; otherwise cv2 sums at most two pixels along both axes.
    """
    begins, extent_ends, pixel_weight = extents.begin, extents.end, extents.pixel_weight
    inverse_scale = outputs / size
    scale = 1.0 / inverse_scale  # in the order of cv2, because the rounding decides which pixel an edge belongs to
    for entry in range(begins.size):
        i = min(entry, outputs - 1)
        i = outputs - 1 - i if flip else i
        if area:
            begin, end = _snap(i * scale), min(_snap((i + 1) * scale), np.float64(size))
        else:
            begin, end = _two_pixels(i, size, scale, inverse_scale)
        begins[entry], extent_ends[entry], pixel_weight[entry] = begin, end, 1.0 / (end - begin)


@compiled
def _snap(edge: float) -> float:
    nearest = np.rint(edge)
    return nearest if abs(edge - nearest) < _SNAP else edge


@compiled
def _two_pixels(i: int, size: int, scale: float, inverse_scale: float) -> tuple[float, float]:
    """Return the interval of output pixel i over the two pixels that cv2 interpolates.

    It is one pixel long. The part beyond the first pixel's end is the weight of the second pixel.
    """
    low = np.floor(i * scale)
    fraction = np.float64(np.float32((i + 1) - (low + 1.0) * inverse_scale))
    fraction = fraction - np.floor(fraction) if fraction > 0.0 else 0.0
    begin = low + fraction if low < size - 1 else np.float64(size - 1)
    return begin, begin + 1.0


@compiled
def set_resize_weights(axis: ResizeWeights, extents: Extents, start: int, far: float, samples: int, unity: int) -> None:
    """Set the samples and weights of output pixels that cover ``extents``, relative to the image's pixel ``start``.

    ``samples`` is the component's size along this axis. ``far`` is the weight of the farther sample if there is one
    sample for two pixels, or FULL_RESOLUTION. A weight is the difference of two rounded cumulative sums, so the weights
    of a pixel sum to exactly ``unity``. The inner loops run along the outputs, so that LLVM vectorizes them.
    """
    weights = axis.weights
    _set_firsts(axis, extents, start, far >= 0.0, samples)
    count = min(axis.span[2], weights.shape[0])
    for t in range(count):
        if far >= 0.0:
            _sum_samples(weights[t], axis.first, extents, t, start, far, samples, unity)
        else:
            _sum_pixels(weights[t], extents, t, unity)
    for t in range(count - 1, 0, -1):
        for i in range(weights.shape[1]):
            weights[t, i] -= weights[t - 1, i]
    axis.span[2] = count


@compiled
def _set_firsts(axis: ResizeWeights, extents: Extents, start: int, halved: bool, samples: int) -> None:
    firsts, begins, extent_ends = axis.first, extents.begin, extents.end
    first_sample, samples_end, longest = np.int64(1 << 40), np.int64(0), np.int64(1)
    for i in range(firsts.size):
        first, last = start + np.int64(np.floor(begins[i])), start + np.int64(np.ceil(extent_ends[i])) - 1
        if halved:
            first, last = max((first - 1) >> 1, 0), min((last + 1) >> 1, samples - 1)
        firsts[i] = first
        first_sample, samples_end = min(first_sample, first), max(samples_end, last + 1)
        longest = max(longest, last + 1 - first)
    axis.span[0], axis.span[1], axis.span[2] = first_sample, samples_end, longest


@compiled
def _sum_pixels(sums: NDArray[np.uint16], extents: Extents, t: int, unity: int) -> None:
    """Store the rounded cumulative weight of each output's first t + 1 pixels."""
    begins, pixel_weight = extents.begin, extents.pixel_weight
    for i in range(sums.size):
        total = _fraction_before(np.floor(begins[i]) + (t + 1), begins[i], pixel_weight[i])
        sums[i] = np.int64(total * unity + 0.5)


@compiled
def _sum_samples(
    sums: NDArray[np.uint16],
    firsts: NDArray[np.int64],
    extents: Extents,
    t: int,
    start: int,
    far: float,
    samples: int,
    unity: int,
) -> None:
    """Store the same as :func:`_sum_pixels`, for samples that each cover two pixels."""
    begins, pixel_weight = extents.begin, extents.pixel_weight
    for i in range(sums.size):
        pixel = 2 * (firsts[i] + t) + 1 - start  # the second pixel of the sample
        total = _fraction_before(pixel + 1, begins[i], pixel_weight[i])
        # A quarter of the second pixel belongs to the next sample, and a quarter of the pixel after it to this one.
        neighbors = _fraction_before(pixel, begins[i], pixel_weight[i]) + _fraction_before(
            pixel + 2, begins[i], pixel_weight[i]
        )
        total = 1.0 if firsts[i] + t >= samples - 1 else total + far * (neighbors - 2.0 * total)
        sums[i] = np.int64(total * unity + 0.5)


@compiled
def _fraction_before(pixel: float, begin: float, pixel_weight: float) -> float:
    """Return the fraction of the output pixel before ``pixel``."""
    return min(max((pixel - begin) * pixel_weight, 0.0), 1.0)
