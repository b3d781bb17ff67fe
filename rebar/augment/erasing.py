"""Random erasing: set a random rectangle of some images to the mean color.

Zhong et al., "Random erasing data augmentation", AAAI 2020. The distribution is that of torchvision's RandomErasing.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from rebar.augment.rng import BatchPosition, upload
from rebar.loading.rng import Stream

_ATTEMPTS = 10
_AREA = (0.02, 0.33)
_ASPECT_RATIO = (0.3, 3.3)


def erasing_boxes(position: BatchPosition, height: int, width: int, *, probability: float) -> NDArray[np.int64]:
    """Return a box (top, left, height, width) per sample in pixels, int64 ``[n, 4]``; empty if nothing is erased."""
    draws = position.uniforms(Stream.ERASING, 2 * _ATTEMPTS + 3)
    area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * draws[:, :_ATTEMPTS])
    low, high = np.log(_ASPECT_RATIO)
    aspect = np.exp(low + (high - low) * draws[:, _ATTEMPTS:-3])
    box_height = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    box_width = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (box_height < height) & (box_width < width)
    rows, first = np.arange(position.count), fits.argmax(axis=1)
    erased = fits[rows, first] & (draws[:, -3] < probability)
    box_height, box_width = (np.where(erased, side[rows, first], 0) for side in (box_height, box_width))
    top = (draws[:, -2] * (height - box_height + 1)).astype(np.int64)
    left = (draws[:, -1] * (width - box_width + 1)).astype(np.int64)
    return np.stack([top, left, box_height, box_width], axis=1)


def erase(images: torch.Tensor, boxes: NDArray[np.int64]) -> torch.Tensor:
    """Set each image's box to 0, the mean color of normalized ``[n, c, h, w]`` images, in place."""
    height, width = images.shape[2:]
    top, left, box_height, box_width = upload(boxes, images.device, torch.int64).view(-1, 4, 1, 1, 1).unbind(1)
    y = torch.arange(height, device=images.device).view(1, 1, -1, 1)
    x = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    inside = (y >= top) & (y < top + box_height) & (x >= left) & (x < left + box_width)
    return images.masked_fill_(inside, 0)  # masked_fill would return a copy without the channels_last layout
