"""Colour jitter: random brightness, contrast, saturation and hue.

Krizhevsky et al., 2012, and Howard, 2013, in the form of torchvision's ColorJitter. The four come in an
order drawn for each batch, the amounts for each picture.
"""

import numpy as np
import torch

from rebar.loading.randomness import Stream
from rebar.training.regularization import colour
from rebar.training.regularization.randomness import BatchPosition

_ADJUSTMENTS = (colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation, colour.adjust_hue)


def color_jitter(images: torch.Tensor, position: BatchPosition, *, strength: float, hue: float) -> torch.Tensor:
    """Change uint8 ``[n, 3, h, w]`` pictures by factors of 1 ± ``strength`` and the hue by up to ± ``hue`` (0.5)."""
    draws = 2 * position.uniforms(Stream.COLOR_JITTER, 4) - 1
    amounts = np.concatenate([np.maximum(1 + strength * draws[:, :3], 0), hue * draws[:, 3:]], axis=1)
    used = [number for number in range(4) if (strength if number < 3 else hue) > 0]
    for number in position.generator(Stream.COLOR_JITTER).permutation(used):
        images = _ADJUSTMENTS[number](images, amounts[:, number])
    return images
