"""Shear, translation and rotation with a separate matrix per image, in one pass over the batch.

Sampling is nearest-neighbor with black fill, as in torchvision's RandAugment and TrivialAugment.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from rebar.augment.rng import upload

Matrices = NDArray[np.float64]
"""``[n, 2, 3]``: maps an output pixel to its source pixel; both are measured from the center, in pixels."""


def shear_x(factors: NDArray[np.float64], height: int, width: int) -> Matrices:
    """Shift each row by its distance from the top edge times the factor."""
    del width
    matrices = _identity(len(factors))
    matrices[:, 0, 1] = factors
    matrices[:, 0, 2] = factors * height / 2
    return matrices


def shear_y(factors: NDArray[np.float64], height: int, width: int) -> Matrices:
    """Shift each column by its distance from the left edge times the factor."""
    del height
    matrices = _identity(len(factors))
    matrices[:, 1, 0] = factors
    matrices[:, 1, 2] = factors * width / 2
    return matrices


def translate_x(pixels: NDArray[np.float64], height: int, width: int) -> Matrices:
    """Shift to the right by integer pixels."""
    del height, width
    matrices = _identity(len(pixels))
    matrices[:, 0, 2] = -np.trunc(pixels)
    return matrices


def translate_y(pixels: NDArray[np.float64], height: int, width: int) -> Matrices:
    """Shift down by integer pixels."""
    del height, width
    matrices = _identity(len(pixels))
    matrices[:, 1, 2] = -np.trunc(pixels)
    return matrices


def rotate(degrees: NDArray[np.float64], height: int, width: int) -> Matrices:
    """Rotate counterclockwise around the center."""
    del height, width
    radians = np.deg2rad(degrees)
    matrices = _identity(len(degrees))
    matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(radians)
    matrices[:, 0, 1], matrices[:, 1, 0] = -np.sin(radians), np.sin(radians)
    return matrices


def _identity(count: int) -> Matrices:
    return np.tile(np.eye(2, 3), (count, 1, 1))


def transform(images: torch.Tensor, matrices: Matrices) -> torch.Tensor:
    """Resample uint8 ``[n, c, h, w]`` images, each by its own matrix."""
    height, width = images.shape[2:]
    a = upload(matrices, images.device)[:, :, :, None, None]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    # Not a matrix product: TF32 would round the coordinates by fractions of a pixel.
    source_x = (a[:, 0, 0] * x + a[:, 0, 1] * y + a[:, 0, 2]) / (width / 2)
    source_y = (a[:, 1, 0] * x + a[:, 1, 1] * y + a[:, 1, 2]) / (height / 2)
    grid = torch.stack([source_x, source_y], dim=3)
    sampled = F.grid_sample(images.to(torch.float32), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return sampled.to(torch.uint8)
