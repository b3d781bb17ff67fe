"""What happens with samples that cannot be decoded: the batch fails, or another sample takes the place."""

import warnings
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rebar.errors import RebarError
from rebar.loading.decode import CorruptSampleError
from rebar.loading.randomness import SampleKeys, Stream, random_bits

OnError = Literal["raise", "replace"]
ATTEMPTS = 16
"""How many substitutes are tried: more corrupt ones in a row mean that the file is lost."""


class CorruptSampleWarning(UserWarning):
    """A sample that cannot be decoded was replaced by another."""


class Corruption:
    """The policy, and the corrupt samples met so far: ``samples`` maps the index to the message."""

    def __init__(self, on_error: OnError, candidates: NDArray[np.int64]) -> None:
        if on_error not in get_args(OnError):
            raise RebarError(f"on_error: {on_error!r} is none of {', '.join(get_args(OnError))}")
        self.on_error = on_error
        self.candidates = candidates
        self.samples: dict[int, str] = {}

    def substitutes(self, error: CorruptSampleError, keys: SampleKeys) -> NDArray[np.int64]:
        """The samples to try instead, a function of (seed, epoch, sample); raises ``error`` if that is the policy."""
        if self.on_error == "raise":
            raise error
        key = SampleKeys(keys.seed, keys.epoch, np.array([error.index]))
        bits = random_bits(key, Stream.SUBSTITUTE, ATTEMPTS)[0]
        return self.candidates[(bits % np.uint64(len(self.candidates))).astype(np.int64)]

    def record(self, errors: list[CorruptSampleError]) -> None:
        """Count the samples, and warn of each once."""
        for error in errors:
            if error.index not in self.samples:
                self.samples[error.index] = str(error)
                warnings.warn(f"{error}. Another sample takes its place", CorruptSampleWarning, stacklevel=2)
