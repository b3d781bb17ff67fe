"""Which samples make an output pixel, and their weights: cv2's INTER_AREA, through libjpeg's chroma upsampling.

Along each axis an output pixel is a weighted sum of neighbouring pixels of the crop, as ``cv2.resize`` with
INTER_AREA weighs them. Where an axis of the chroma is halved, each of these pixels is again 3/4 of the nearer
and 1/4 of the farther chroma sample (libjpeg's "fancy upsampling"), so the two filters become one over
chroma samples, and nothing is ever upsampled.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.compiled import compiled

COLUMN_ONE = 256  # what the weights along x sum to: 8-bit samples become 8.8 fixed point in 16 bits
WHOLE = -1.0
FANCY, REPLICATED = 0.25, 0.0  # libjpeg's two ways to make two pixels of a chroma sample
TILE = 8  # output columns made together
ROW_ONE = 65535  # along y: the product's high 16 bits are 8.8 again


_SNAP = 1e-3  # pixels: an edge this near to a pixel's lies on it, in cv2 too


class Taps(NamedTuple):
    """Of each output pixel along one axis, n rounded up to TILE, where the surplus repeats the last one:

    ``first`` int64 ``[n]`` sample, ``weights`` uint16 ``[n, most]`` of the samples from there on. ``span`` int64
    ``[3]``: the first sample of all, the one behind the last, and how many weights of a pixel count.
    """

    first: NDArray[np.int64]
    weights: NDArray[np.uint16]
    span: NDArray[np.int64]


def new_taps(outputs: int, size: int) -> Taps:
    """Room for ``outputs`` pixels made from up to ``size``."""
    entries = -(-outputs // TILE) * TILE
    weights = np.zeros((entries, size // outputs + 4), np.uint16)
    return Taps(np.zeros(entries, np.int64), weights, np.zeros(3, np.int64))


@compiled
def set_taps(
    taps: Taps, outputs: int, start: int, size: int, area: bool, far: float, samples: int, one: int, flip: bool
) -> None:
    """Set the taps that resize the pixels ``start`` to ``start + size`` to ``outputs``, mirrored if ``flip``.

    ``area`` says that both axes shrink (or stay); else cv2 takes two pixels at most, along both.
    ``samples`` is how many the component has along the whole picture; where that is one for two pixels, ``far``
    is the farther sample's share of a pixel (WHOLE where each pixel has its own).

    A weight is the difference of two rounded sums, of all shares up to a sample and up to the one before: the
    weights of a pixel sum to ``one``, however many they are.
    """
    firsts, weights = taps.first, taps.weights
    inverse_scale = outputs / size
    scale = 1.0 / inverse_scale  # in this order, as cv2 does: which pixel an edge falls on depends on the last bit
    most_pixels = np.int64(np.ceil(scale)) + 1 if area else 2
    limit = min((most_pixels + 1) // 2 + 2 if far >= 0.0 else most_pixels, weights.shape[1])
    begin_all, behind_all, most = np.int64(1 << 40), np.int64(0), np.int64(1)
    for i in range(outputs):
        if area:
            begin, behind, low, high = _area(i, size, scale)
        else:
            begin, behind, low, high = _two_pixels(i, size, scale, inverse_scale)
        per_pixel = 1.0 / (behind - begin)
        output = outputs - 1 - i if flip else i
        if far >= 0.0:
            first, last = max((start + low - 1) >> 1, 0), min((start + high + 1) >> 1, samples - 1)
        else:
            first, last = start + low, start + high
        before = np.int64(0)
        for t in range(limit):
            if far >= 0.0:
                pixel = 2 * (first + t) + 1 - start  # the sample's second one
                total = _share(pixel + 1, begin, behind, per_pixel)
                # A quarter of its second pixel belongs to the next sample; a quarter of the pixel after to it.
                bend = _share(pixel, begin, behind, per_pixel) + _share(pixel + 2, begin, behind, per_pixel)
                total = 1.0 if first + t >= samples - 1 else total + far * (bend - 2.0 * total)
            else:
                total = _share(low + t + 1, begin, behind, per_pixel)
            rounded = np.int64(total * one + 0.5)
            weights[output, t] = rounded - before
            before = rounded
        firsts[output] = first
        begin_all, behind_all = min(begin_all, first), max(behind_all, last + 1)
        most = max(most, last + 1 - first)
    for i in range(outputs, firsts.size):
        firsts[i] = firsts[outputs - 1]
        for t in range(limit):
            weights[i, t] = weights[outputs - 1, t]
    taps.span[0], taps.span[1], taps.span[2] = begin_all, behind_all, min(most, limit)


@compiled
def _share(pixel: int, begin: float, behind: float, per_pixel: float) -> float:
    """How much of the output pixel lies before ``pixel``, of 1."""
    return 1.0 if pixel >= behind else max((pixel - begin) * per_pixel, 0.0)


@compiled
def _snap(edge: float) -> float:
    nearest = np.rint(edge)
    return nearest if abs(edge - nearest) < _SNAP else edge


@compiled
def _area(i: int, size: int, scale: float) -> tuple[float, float, int, int]:
    """The i-th output pixel's extent in pixels ``(begin, behind)``, and the pixels ``(low, high)`` under it."""
    begin, behind = _snap(i * scale), min(_snap((i + 1) * scale), np.float64(size))
    return begin, behind, np.int64(np.floor(begin)), np.int64(np.ceil(behind)) - 1


@compiled
def _two_pixels(i: int, size: int, scale: float, inverse_scale: float) -> tuple[float, float, int, int]:
    """As :func:`_area`, of the pixel and its neighbour that cv2 takes where an axis grows.

    The neighbour's share is what the output pixel covers beyond the first pixel's end.
    """
    low = np.int64(np.floor(i * scale))
    share = np.float64(np.float32((i + 1) - (low + 1) * inverse_scale))
    share = share - np.floor(share) if share > 0.0 else 0.0
    if low >= size - 1 or share == 0.0:
        low = min(low, size - 1)
        return np.float64(low), low + 1.0, low, low
    # An extent of one pixel's length, whose end is `share` beyond the first pixel.
    return low + share, low + 1.0 + share, low, low + 1
