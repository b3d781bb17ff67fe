"""TrivialAugment (wide): one operation a picture, at a random strength; nothing to tune.

Müller and Hutter, "TrivialAugment: tuning-free yet state-of-the-art data augmentation", ICCV 2021.
Operations and strengths are torchvision's.
"""

import torch

from rebar.loading.randomness import Stream
from rebar.training.regularization.operations import OPERATIONS, Strengths, apply_operations, signed
from rebar.training.regularization.randomness import BatchPosition, pick

WIDE = Strengths(0.99, 32, 32, degrees=135, factor=0.99, lost_bits=6)


def trivial_augment(images: torch.Tensor, position: BatchPosition) -> torch.Tensor:
    """Apply a random operation of random strength to each uint8 ``[n, 3, h, w]`` picture."""
    draws = position.uniforms(Stream.AUTO_AUGMENT, 3)
    operations = pick(draws[:, 0], len(OPERATIONS))
    magnitudes = WIDE.magnitudes(operations, pick(draws[:, 2], WIDE.bins))
    return apply_operations(images, operations, signed(operations, magnitudes, draws[:, 1]))
