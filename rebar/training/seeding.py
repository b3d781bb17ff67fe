"""Torch's random numbers of a step as a function of (seed, step, process), so that a resumed run draws alike."""

import numpy as np
import torch

from rebar.loading.randomness import SampleKeys, Stream, random_bits


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators, the GPUs' too, for what a step draws (dropout, stochastic depth). Does not wait."""
    bits = random_bits(SampleKeys(seed, step, np.array([rank])), Stream.TORCH)
    torch.manual_seed(int(bits[0, 0] >> np.uint64(1)))
