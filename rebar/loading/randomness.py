"""Counter-based random numbers: a pure function of (seed, epoch, sample, draw).

No generator has a state that workers would share or a restart would lose, so a sample is augmented the
same way whoever decodes it, whenever. The mixing function is splitmix64's finaliser (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


class Stream(IntEnum):
    """What a number is drawn for; streams are independent of one another."""

    ORDER = 0
    CROP = 1
    FLIP = 2


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_bits(
    seed: int, epoch: int, indices: NDArray[np.integer], *, stream: Stream, draws: int = 1
) -> NDArray[np.uint64]:
    """64 random bits each, uint64 ``[len(indices), draws]``."""
    key = np.zeros(1, np.uint64)
    for part in (seed, epoch, int(stream)):
        key = _mix(key + np.uint64(part & _MASK) + _GOLDEN)
    counters = _mix(key + (indices.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    steps = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
    return _mix(counters[:, None] + steps[None, :])


def uniforms(
    seed: int, epoch: int, indices: NDArray[np.integer], *, stream: Stream, draws: int = 1
) -> NDArray[np.float64]:
    """Numbers uniform in [0, 1), float64 ``[len(indices), draws]``."""
    bits = random_bits(seed, epoch, indices, stream=stream, draws=draws)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
