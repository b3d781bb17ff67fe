"""Shears, shifts and rotations of a batch, every image its own, in one pass.

Nearest neighbour, black outside, as ``torchvision.transforms.v2`` does in its automatic augmentations.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from rebar.augment.rng import upload

Matrices = NDArray[np.float64]
"""``[n, 2, 3]``: where in the source a pixel of the result comes from, both measured from the centre, in pixels."""


def shear_x(amounts: NDArray[np.float64], height: int, width: int) -> Matrices:
    """Rows moved sideways by ``amounts`` times their distance from the upper edge."""
    del width
    matrices = _identity(len(amounts))
    matrices[:, 0, 1] = amounts
    matrices[:, 0, 2] = amounts * height / 2
    return matrices


def shear_y(amounts: NDArray[np.float64], height: int, width: int) -> Matrices:
    """Columns moved up or down by ``amounts`` times their distance from the left edge."""
    del height
    matrices = _identity(len(amounts))
    matrices[:, 1, 0] = amounts
    matrices[:, 1, 2] = amounts * width / 2
    return matrices


def translate_x(pixels: NDArray[np.float64], height: int, width: int) -> Matrices:
    """To the right by whole pixels."""
    del height, width
    matrices = _identity(len(pixels))
    matrices[:, 0, 2] = -np.trunc(pixels)
    return matrices


def translate_y(pixels: NDArray[np.float64], height: int, width: int) -> Matrices:
    """Down by whole pixels."""
    del height, width
    matrices = _identity(len(pixels))
    matrices[:, 1, 2] = -np.trunc(pixels)
    return matrices


def rotate(degrees: NDArray[np.float64], height: int, width: int) -> Matrices:
    """Counter-clockwise around the centre."""
    del height, width
    radians = np.deg2rad(degrees)
    matrices = _identity(len(degrees))
    matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(radians)
    matrices[:, 0, 1], matrices[:, 1, 0] = -np.sin(radians), np.sin(radians)
    return matrices


def _identity(count: int) -> Matrices:
    return np.tile(np.eye(2, 3), (count, 1, 1))


def transform(images: torch.Tensor, matrices: Matrices) -> torch.Tensor:
    """Move the pixels of uint8 ``[n, c, h, w]`` images, each by its own matrix."""
    height, width = images.shape[2:]
    a = upload(matrices, images.device)[:, :, :, None, None]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    # Not a matrix product: TF32 would round the coordinates by parts of a pixel.
    source_x = (a[:, 0, 0] * x + a[:, 0, 1] * y + a[:, 0, 2]) / (width / 2)
    source_y = (a[:, 1, 0] * x + a[:, 1, 1] * y + a[:, 1, 2]) / (height / 2)
    grid = torch.stack([source_x, source_y], dim=3)
    moved = F.grid_sample(images.to(torch.float32), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved.to(torch.uint8)
