"""Which samples make an output pixel, and their weights: cv2's INTER_AREA, through libjpeg's chroma upsampling.

Along each axis an output pixel is a weighted sum of neighbouring pixels of the crop, as ``cv2.resize`` with
INTER_AREA weighs them. Where an axis of the chroma is halved, each of these pixels is again 3/4 of the nearer
and 1/4 of the farther chroma sample (libjpeg's "fancy upsampling"), so the two filters become one over
chroma samples, and nothing is ever upsampled.
"""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.kernels.jit import compiled
from rebar.jpeg.workspace import Extents, ResizeWeights

COLUMN_ONE = 256  # what the weights along x sum to: 8-bit samples become 8.8 fixed point in 16 bits
WHOLE = -1.0
FANCY, REPLICATED = 0.25, 0.0  # libjpeg's two ways to make two pixels of a chroma sample
ROW_ONE = 65535  # along y: the product's high 16 bits are 8.8 again
_SNAP = 1e-3  # pixels: an edge this near to a pixel's lies on it, in cv2 too


@compiled
def set_extents(extents: Extents, outputs: int, size: int, area: bool, flip: bool) -> None:
    """Set what each output pixel covers where ``size`` pixels become ``outputs``, mirrored if ``flip``.

    ``area`` says that both axes shrink (or stay); else cv2 takes two pixels at most, along both.
    """
    begins, behinds, per_pixel = extents.begin, extents.behind, extents.per_pixel
    inverse_scale = outputs / size
    scale = 1.0 / inverse_scale  # in this order, as cv2 does: which pixel an edge falls on depends on the last bit
    for entry in range(begins.size):
        i = min(entry, outputs - 1)
        i = outputs - 1 - i if flip else i
        if area:
            begin, behind = _snap(i * scale), min(_snap((i + 1) * scale), np.float64(size))
        else:
            begin, behind = _two_pixels(i, size, scale, inverse_scale)
        begins[entry], behinds[entry], per_pixel[entry] = begin, behind, 1.0 / (behind - begin)


@compiled
def _snap(edge: float) -> float:
    nearest = np.rint(edge)
    return nearest if abs(edge - nearest) < _SNAP else edge


@compiled
def _two_pixels(i: int, size: int, scale: float, inverse_scale: float) -> tuple[float, float]:
    """An extent on the i-th output pixel's first pixel and its neighbour, where cv2 takes these two.

    It is one pixel long, and ends as far behind the first one as the neighbour has a share: what the output
    pixel covers beyond the first pixel's end.
    """
    low = np.floor(i * scale)
    share = np.float64(np.float32((i + 1) - (low + 1.0) * inverse_scale))
    share = share - np.floor(share) if share > 0.0 else 0.0
    begin = low + share if low < size - 1 else np.float64(size - 1)
    return begin, begin + 1.0


@compiled
def set_resize_weights(taps: ResizeWeights, extents: Extents, start: int, far: float, samples: int, one: int) -> None:
    """Set the taps of output pixels that cover ``extents``, counted from the image's pixel ``start``.

    ``samples`` is how many the component has along the whole image; where that is one for two pixels, ``far``
    is the farther sample's share of a pixel (WHOLE where each pixel has its own).

    A weight is the difference of two rounded sums, of all shares up to a sample and up to the one before: the
    weights of a pixel sum to ``one``, however many they are. All loops go along the outputs, many at once.
    """
    weights = taps.weights
    _set_firsts(taps, extents, start, far >= 0.0, samples)
    count = min(taps.span[2], weights.shape[0])
    for t in range(count):
        if far >= 0.0:
            _sum_samples(weights[t], taps.first, extents, t, start, far, samples, one)
        else:
            _sum_pixels(weights[t], extents, t, one)
    for t in range(count - 1, 0, -1):
        for i in range(weights.shape[1]):
            weights[t, i] -= weights[t - 1, i]
    taps.span[2] = count


@compiled
def _set_firsts(taps: ResizeWeights, extents: Extents, start: int, halved: bool, samples: int) -> None:
    firsts, begins, behinds = taps.first, extents.begin, extents.behind
    begin_all, behind_all, most = np.int64(1 << 40), np.int64(0), np.int64(1)
    for i in range(firsts.size):
        first, last = start + np.int64(np.floor(begins[i])), start + np.int64(np.ceil(behinds[i])) - 1
        if halved:
            first, last = max((first - 1) >> 1, 0), min((last + 1) >> 1, samples - 1)
        firsts[i] = first
        begin_all, behind_all = min(begin_all, first), max(behind_all, last + 1)
        most = max(most, last + 1 - first)
    taps.span[0], taps.span[1], taps.span[2] = begin_all, behind_all, most


@compiled
def _sum_pixels(sums: NDArray[np.uint16], extents: Extents, t: int, one: int) -> None:
    """The rounded sum of the shares of each output's first t + 1 pixels."""
    begins, per_pixel = extents.begin, extents.per_pixel
    for i in range(sums.size):
        total = _share(np.floor(begins[i]) + (t + 1), begins[i], per_pixel[i])
        sums[i] = np.int64(total * one + 0.5)


@compiled
def _sum_samples(
    sums: NDArray[np.uint16],
    firsts: NDArray[np.int64],
    extents: Extents,
    t: int,
    start: int,
    far: float,
    samples: int,
    one: int,
) -> None:
    """As :func:`_sum_pixels`, of samples that are one for two pixels."""
    begins, per_pixel = extents.begin, extents.per_pixel
    for i in range(sums.size):
        pixel = 2 * (firsts[i] + t) + 1 - start  # the sample's second one
        total = _share(pixel + 1, begins[i], per_pixel[i])
        # A quarter of its second pixel belongs to the next sample; a quarter of the pixel after to it.
        bend = _share(pixel, begins[i], per_pixel[i]) + _share(pixel + 2, begins[i], per_pixel[i])
        total = 1.0 if firsts[i] + t >= samples - 1 else total + far * (bend - 2.0 * total)
        sums[i] = np.int64(total * one + 0.5)


@compiled
def _share(pixel: float, begin: float, per_pixel: float) -> float:
    """How much of the output pixel lies before ``pixel``, of 1."""
    return min(max((pixel - begin) * per_pixel, 0.0), 1.0)
