"""Random numbers for augmentation: a function of (seed, step, position in the global batch).

A resumed run therefore augments like an uninterrupted one, and a global batch does not depend on the number of ranks.
Numbers are drawn on the host, so no operation synchronizes with the device.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rebar.loading.rng import RngKeys, Stream, random_bits, uniforms


@dataclass(frozen=True)
class BatchPosition:
    """The position of one rank's batch in a run."""

    seed: int
    step: int
    """The step of the run, from 0."""
    first: int
    """The position of the rank's first sample in the global batch."""
    count: int
    """The number of samples in the rank's batch."""

    def uniforms(self, stream: Stream, draws: int) -> NDArray[np.float64]:
        """Return random numbers uniform in [0, 1) per sample, float64 ``[count, draws]``."""
        indices = np.arange(self.first, self.first + self.count)
        return uniforms(RngKeys(self.seed, self.step, indices), stream, draws)

    def generator(self, stream: Stream) -> np.random.Generator:
        """Return a generator for draws per global batch; it is the same on every rank."""
        key = random_bits(RngKeys(self.seed, self.step, np.zeros(1, np.int64)), stream, 2)[0]
        return np.random.Generator(np.random.Philox(key=key))


def to_integers(draws: NDArray[np.float64], upper: int) -> NDArray[np.int64]:
    """Map uniform numbers in [0, 1) to integers in [0, upper)."""
    return (draws * upper).astype(np.int64)


def upload(values: ArrayLike, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Copy host values to ``device`` without synchronizing."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def per_sample(values: ArrayLike, images: torch.Tensor) -> torch.Tensor:
    """Copy one value per image to the images' device, float32 ``[n, 1, 1, 1]``."""
    return upload(values, images.device).view(-1, 1, 1, 1)


def take(images: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Copy ``images[indices]``, ``[n, c, h, w]``, in channels_last layout."""
    return images.permute(0, 2, 3, 1).index_select(0, indices).permute(0, 3, 1, 2)
