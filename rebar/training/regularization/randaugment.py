"""RandAugment: a few operations a picture, all at one strength.

Cubuk et al., "RandAugment: practical automated data augmentation with a reduced search space", NeurIPS
2020. Operations and strengths are torchvision's.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from rebar.loading.randomness import Stream
from rebar.training.regularization.operations import OPERATIONS, Strengths, apply_operations, signed
from rebar.training.regularization.randomness import BatchPosition, pick

_IDENTITY = 0


def strengths(height: int, width: int) -> Strengths:
    """What magnitude 30 means for pictures of this size, in pixels."""
    return Strengths(0.3, 150 / 331 * width, 150 / 331 * height, degrees=30, factor=0.9, lost_bits=4)


def rand_augment(
    images: torch.Tensor,
    position: BatchPosition,
    *,
    num_ops: int,
    magnitude: int,
    probability: float = 1.0,
    noise: float = 0.0,
) -> torch.Tensor:
    """Apply ``num_ops`` random operations of ``magnitude`` (0 to 30) to each uint8 ``[n, 3, h, w]`` picture.

    As timm's, each is applied with a ``probability`` only, and its magnitude is normally distributed with the
    standard deviation ``noise``.
    """
    draws = position.uniforms(Stream.AUTO_AUGMENT, 2 * num_ops)
    table, applied = strengths(*images.shape[2:]), _applied(position, num_ops, probability)
    drawn = _drawn_magnitudes(position, num_ops, magnitude, noise)
    for number in range(num_ops):
        operations = np.where(applied[:, number], pick(draws[:, 2 * number], len(OPERATIONS)), _IDENTITY)
        magnitudes = table.magnitudes(operations, drawn[:, number])
        images = apply_operations(images, operations, signed(operations, magnitudes, draws[:, 2 * number + 1]))
    return images


def _applied(position: BatchPosition, num_ops: int, probability: float) -> NDArray[np.bool_]:
    """Whether each operation of each picture is applied, ``[n, num_ops]``."""
    return position.uniforms(Stream.SKIPPING, num_ops) < probability


def _drawn_magnitudes(position: BatchPosition, num_ops: int, magnitude: int, noise: float) -> NDArray[np.int64]:
    """A whole magnitude for each operation of each picture, ``[n, num_ops]``."""
    first, second = np.split(position.uniforms(Stream.MAGNITUDE, 2 * num_ops), 2, axis=1)
    normal = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)  # Box and Muller, 1958
    return np.clip(np.rint(magnitude + noise * normal), 0, 30).astype(np.int64)
