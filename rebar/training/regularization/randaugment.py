"""RandAugment: a few operations a picture, all at one strength.

Cubuk et al., "RandAugment: practical automated data augmentation with a reduced search space", NeurIPS
2020. Operations and strengths are torchvision's.
"""

import numpy as np
import torch

from rebar.loading.randomness import Stream
from rebar.training.regularization.operations import OPERATIONS, Strengths, apply_operations, signed
from rebar.training.regularization.randomness import BatchPosition, pick


def strengths(height: int, width: int) -> Strengths:
    """What magnitude 30 means for pictures of this size, in pixels."""
    return Strengths(0.3, 150 / 331 * width, 150 / 331 * height, degrees=30, factor=0.9, lost_bits=4)


def rand_augment(images: torch.Tensor, position: BatchPosition, *, num_ops: int, magnitude: int) -> torch.Tensor:
    """Apply ``num_ops`` random operations of ``magnitude`` (0 to 30) to each uint8 ``[n, 3, h, w]`` picture."""
    draws = position.uniforms(Stream.AUTO_AUGMENT, 2 * num_ops)
    table = strengths(*images.shape[2:])
    for number in range(num_ops):
        operations = pick(draws[:, 2 * number], len(OPERATIONS))
        magnitudes = table.magnitudes(operations, np.full(position.count, magnitude))
        images = apply_operations(images, operations, signed(operations, magnitudes, draws[:, 2 * number + 1]))
    return images
