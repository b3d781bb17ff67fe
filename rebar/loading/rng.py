"""Counter-based random numbers: functions of (seed, epoch, sample), and of (seed, step, position) for augmentation.

There is no generator state to save or to share between workers. A resumed run crops and augments like an uninterrupted
one, and a global batch does not depend on the number of ranks. The mixing function is splitmix64's finalizer (Steele,
Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

import zlib
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1
_SAMPLE_BITS = np.uint64(48)


class Stream(IntEnum):
    """The purpose of a random number. Streams are independent. Changing a value changes every run's random numbers.

    An augmentation technique may use its name as its stream instead.
    """

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


def _stream_key(stream: Stream | str) -> int:
    """Return the key of a stream. The keys of names are above those of :class:`Stream`."""
    return (1 << 32) + zlib.crc32(stream.encode()) if isinstance(stream, str) else int(stream)


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


def random_bits(keys: RngKeys, stream: Stream | str, draws: int = 1) -> NDArray[np.uint64]:
    """Return 64 random bits per sample and draw, uint64 ``[len(keys), draws]``."""
    key = np.zeros(1, np.uint64)
    for part in (keys.seed, keys.epoch, _stream_key(stream)):
        key = _mix(key + np.uint64(part & _MASK) + _GOLDEN)
    counters = keys.indices.astype(np.uint64) + np.uint64(1)
    if keys.copies is not None:
        counters += keys.copies.astype(np.uint64) << _SAMPLE_BITS
    states = _mix(key + counters * _GOLDEN)
    steps = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
    return _mix(states[:, None] + steps[None, :])


def uniforms(keys: RngKeys, stream: Stream | str, draws: int = 1) -> NDArray[np.float64]:
    """Return random numbers uniform in [0, 1), float64 ``[len(keys), draws]``."""
    return (random_bits(keys, stream, draws) >> np.uint64(11)).astype(np.float64) * 2.0**-53


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

    def uniforms(self, stream: Stream | str, draws: int) -> NDArray[np.float64]:
        """Return random numbers uniform in [0, 1) per sample, float64 ``[count, draws]``."""
        indices = np.arange(self.first, self.first + self.count)
        return uniforms(RngKeys(self.seed, self.step, indices), stream, draws)

    def generator(self, stream: Stream | str) -> np.random.Generator:
        """Return a generator for draws per global batch; it is the same on every rank."""
        key = random_bits(RngKeys(self.seed, self.step, np.zeros(1, np.int64)), stream, 2)[0]
        return np.random.Generator(np.random.Philox(key=key))


def to_integers(draws: NDArray[np.float64], upper: int) -> NDArray[np.int64]:
    """Map uniform numbers in [0, 1) to integers in [0, upper)."""
    return (draws * upper).astype(np.int64)
