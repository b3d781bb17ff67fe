"""Counter-based random numbers, and the crops and flips chosen with them: pure functions of (seed, epoch, sample).

There is no generator state to save or to share between workers. The mixing function is splitmix64's finalizer (Steele,
Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1
_SAMPLE_BITS = np.uint64(48)


class Stream(IntEnum):
    """The purpose of a random number. Streams are independent. Changing a value changes every run's random numbers."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    PAGE = 3
    SUBSTITUTE = 4
    NUMBA = 5
    """Seeds for the generators of operations that FFCV compiles with numba."""
    # Augmentation on the device: the step takes the place of the epoch, the index in the global batch that of the
    # sample.
    AUTO_AUGMENT = 6
    COLOR_JITTER = 7
    ERASING = 8
    MIXING = 9
    TORCH = 10
    """Seeds for torch's generators in a training step."""
    MAGNITUDE = 11
    OPERATION_MASK = 12


@dataclass(frozen=True)
class RngKeys:
    """The keys of the random numbers of a set of samples."""

    seed: int
    epoch: int
    indices: NDArray[np.int64]
    copies: NDArray[np.int64] | None = None
    """Repeated augmentation: the number of each copy of a sample in the epoch, from 0."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> "RngKeys":
        """Return the keys of a slice of the samples."""
        copies = None if self.copies is None else self.copies[part]
        return RngKeys(self.seed, self.epoch, self.indices[part], copies)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_bits(keys: RngKeys, stream: Stream, draws: int = 1) -> NDArray[np.uint64]:
    """Return 64 random bits per sample and draw, uint64 ``[len(keys), draws]``."""
    key = np.zeros(1, np.uint64)
    for part in (keys.seed, keys.epoch, int(stream)):
        key = _mix(key + np.uint64(part & _MASK) + _GOLDEN)
    counters = keys.indices.astype(np.uint64) + np.uint64(1)
    if keys.copies is not None:
        counters += keys.copies.astype(np.uint64) << _SAMPLE_BITS
    states = _mix(key + counters * _GOLDEN)
    steps = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
    return _mix(states[:, None] + steps[None, :])


def uniforms(keys: RngKeys, stream: Stream, draws: int = 1) -> NDArray[np.float64]:
    """Return random numbers uniform in [0, 1), float64 ``[len(keys), draws]``."""
    return (random_bits(keys, stream, draws) >> np.uint64(11)).astype(np.float64) * 2.0**-53


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
