"""A run in one process on the CPU."""

import pytest
import torch

from rebar.training.distributed import World


@pytest.fixture
def world() -> World:
    return World(rank=0, size=1, device=torch.device("cpu"))
