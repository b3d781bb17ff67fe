"""What the augmentation of a batch depends on: (seed, step, place in the global batch), nothing else.

So a resumed run augments as the undisturbed one would have, and at one global batch size any number of
processes augments alike. Drawn on the host, which knows then which operations there are, and never has
to ask the device.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rebar.loading.rng import RngKeys, Stream, random_bits, uniforms


@dataclass(frozen=True)
class BatchPosition:
    """Where one process's batch stands in a run."""

    seed: int
    step: int
    """Of the run, from 0."""
    first: int
    """The place of the process's first sample in the global batch."""
    count: int
    """Samples of the process's batch."""

    def uniforms(self, stream: Stream, draws: int) -> NDArray[np.float64]:
        """Numbers in [0, 1), ``[count, draws]``: every sample's own."""
        places = np.arange(self.first, self.first + self.count)
        return uniforms(RngKeys(self.seed, self.step, places), stream, draws)

    def generator(self, stream: Stream) -> np.random.Generator:
        """For what a whole global batch has in common: the same in every process."""
        key = random_bits(RngKeys(self.seed, self.step, np.zeros(1, np.int64)), stream, 2)[0]
        return np.random.Generator(np.random.Philox(key=key))


def pick(draws: NDArray[np.float64], choices: int) -> NDArray[np.int64]:
    """Whole numbers below ``choices`` of numbers in [0, 1)."""
    return (draws * choices).astype(np.int64)


def upload(values: ArrayLike, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Host values as a tensor on ``device``; the host does not wait for the copy."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def per_sample(values: ArrayLike, images: torch.Tensor) -> torch.Tensor:
    """One float32 number an image, shaped ``[n, 1, 1, 1]`` to go with ``images``."""
    return upload(values, images.device).view(-1, 1, 1, 1)
