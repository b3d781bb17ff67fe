"""Draw the crops and flips of images, as functions of (seed, epoch, sample)."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rebar.loading.rng import RngKeys, Stream, uniforms

_ATTEMPTS = 10


IMAGENET_CENTER_RATIO = 224 / 256


@dataclass(frozen=True)
class Crops:
    """``boxes`` int64 ``[n, 4]``, (top, left, height, width) in pixels of the stored image; ``flips`` bool ``[n]``."""

    boxes: NDArray[np.int64]
    flips: NDArray[np.bool_]

    def __getitem__(self, part: slice) -> "Crops":
        """Return the crops of a slice of the samples."""
        return Crops(self.boxes[part], self.flips[part])


class Cropper(Protocol):
    """Chooses crops from image sizes and random keys."""

    def crops(self, heights: NDArray[np.int64], widths: NDArray[np.int64], keys: RngKeys) -> Crops:
        """Return one crop per sample; ``heights`` and ``widths`` are int64 ``[n]``, in pixels."""


def _flips(keys: RngKeys, probability: float) -> NDArray[np.bool_]:
    return uniforms(keys, Stream.FLIP)[:, 0] < probability


@dataclass(frozen=True)
class RandomResizedCrop:
    """A crop of random area and aspect ratio, flipped horizontally with ``flip_probability``.

    ``scale`` is the range of the crop's area as a fraction of the image's, ``ratio`` the range of width / height. The
    distribution is that of torchvision and FFCV: the first of ten random (area, aspect ratio) pairs that fits, or the
    largest centered crop with an allowed aspect ratio (Szegedy et al., "Going deeper with convolutions", CVPR 2015).
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5

    def crops(self, heights: NDArray[np.int64], widths: NDArray[np.int64], keys: RngKeys) -> Crops:
        """Return one random crop per sample."""
        draws = uniforms(keys, Stream.CROP, 2 * _ATTEMPTS + 2)
        height, width = heights[:, None], widths[:, None]
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * draws[:, :_ATTEMPTS])
        low, high = np.log(self.ratio)
        aspect = np.exp(low + (high - low) * draws[:, _ATTEMPTS:-2])
        crop_width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        crop_height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        fits = (crop_width > 0) & (crop_width <= width) & (crop_height > 0) & (crop_height <= height)
        first = np.argmax(fits, axis=1)
        rows = np.arange(len(keys))
        fallback_height, fallback_width = self._fallback(heights, widths)
        found = fits[rows, first]
        crop_height = np.where(found, crop_height[rows, first], fallback_height)
        crop_width = np.where(found, crop_width[rows, first], fallback_width)
        top, left = (
            np.where(found, (draw * (room + 1)).astype(np.int64), room // 2)  # the fallback is centered
            for draw, room in ((draws[:, -2], heights - crop_height), (draws[:, -1], widths - crop_width))
        )
        boxes = np.stack([top, left, crop_height, crop_width], axis=1)
        return Crops(boxes, _flips(keys, self.flip_probability))

    def _fallback(
        self, heights: NDArray[np.int64], widths: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        aspect = widths / heights
        narrow = np.rint(widths / self.ratio[0]).astype(np.int64)
        wide = np.rint(heights * self.ratio[1]).astype(np.int64)
        height = np.where(aspect < self.ratio[0], np.minimum(narrow, heights), heights)
        width = np.where(aspect > self.ratio[1], np.minimum(wide, widths), widths)
        return height, width


@dataclass(frozen=True)
class CenterCrop:
    """The centered square whose side is ``ratio`` times the shorter side, as in FFCV and ffcv-imagenet."""

    ratio: float = IMAGENET_CENTER_RATIO
    flip_probability: float = 0.0

    def crops(self, heights: NDArray[np.int64], widths: NDArray[np.int64], keys: RngKeys) -> Crops:
        """Return one center crop per sample."""
        side = np.maximum((self.ratio * np.minimum(heights, widths)).astype(np.int64), 1)
        boxes = np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1)
        return Crops(boxes, _flips(keys, self.flip_probability))
