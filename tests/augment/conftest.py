"""Test images with edges, colors and constant regions."""

import pytest
import torch
import torch.nn.functional as F


@pytest.fixture
def images() -> torch.Tensor:
    """uint8 ``[6, 3, 40, 32]``, channels_last like the loader's; the last image has a single color."""
    coarse = torch.randint(0, 256, (6, 3, 8, 9), generator=torch.Generator().manual_seed(0)).float()
    fine = F.interpolate(coarse, size=(40, 32), mode="bicubic").clamp(0, 255).to(torch.uint8)
    fine[-1] = 77
    return fine.contiguous(memory_format=torch.channels_last)
