"""Tests of rebar.training.rng."""

import random

import numpy as np
import torch

from rebar.training.rng import rng_states, set_rng_states


def draw() -> list[float]:
    return [torch.rand(1).item(), float(np.random.standard_normal()), random.gauss(0, 1)]


def test_set_rng_states_restores_all_generators(tmp_path: object) -> None:
    cpu = torch.device("cpu")
    draw()  # so that NumPy and Python have a cached second Gaussian
    torch.save(rng_states(cpu), f"{tmp_path}/states.pt")
    expected = [draw() for _ in range(3)]
    set_rng_states(torch.load(f"{tmp_path}/states.pt", weights_only=True), cpu)
    assert [draw() for _ in range(3)] == expected
