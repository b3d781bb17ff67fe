"""Counter-based random numbers: a pure function of (seed, epoch, sample, draw).

No generator has a state that workers would share or a restart would lose, so a sample is augmented the
same way whoever decodes it, whenever. The mixing function is splitmix64's finaliser (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1
_SAMPLE_BITS = np.uint64(48)


class Stream(IntEnum):
    """What a number is drawn for; streams are independent of one another."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    PAGE = 3
    SUBSTITUTE = 4
    FOREIGN = 5
    """The seeds of other people's generators."""
    # Of the augmentation on the device, whose "epoch" is the step and whose "sample" the place in the batch.
    AUTO_AUGMENT = 6
    COLOR_JITTER = 7
    ERASING = 8
    MIXING = 9
    TORCH = 10
    """The seed of torch's generators in a step."""
    MAGNITUDE = 11
    SKIPPING = 12


@dataclass(frozen=True)
class RngKeys:
    """What the randomness of some samples depends on: all of it, and nothing else."""

    seed: int
    epoch: int
    indices: NDArray[np.int64]
    copies: NDArray[np.int64] | None = None
    """Which of its visits in the epoch each is, from 0, where samples come more than once."""

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, share: slice) -> "RngKeys":
        """Of some of the samples."""
        copies = None if self.copies is None else self.copies[share]
        return RngKeys(self.seed, self.epoch, self.indices[share], copies)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_bits(keys: RngKeys, stream: Stream, draws: int = 1) -> NDArray[np.uint64]:
    """64 random bits each, uint64 ``[len(keys), draws]``."""
    key = np.zeros(1, np.uint64)
    for part in (keys.seed, keys.epoch, int(stream)):
        key = _mix(key + np.uint64(part & _MASK) + _GOLDEN)
    places = keys.indices.astype(np.uint64) + np.uint64(1)
    if keys.copies is not None:
        places += keys.copies.astype(np.uint64) << _SAMPLE_BITS
    counters = _mix(key + places * _GOLDEN)
    steps = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
    return _mix(counters[:, None] + steps[None, :])


def uniforms(keys: RngKeys, stream: Stream, draws: int = 1) -> NDArray[np.float64]:
    """Numbers uniform in [0, 1), float64 ``[len(keys), draws]``."""
    return (random_bits(keys, stream, draws) >> np.uint64(11)).astype(np.float64) * 2.0**-53
