"""CutMix: a rectangle of each picture from its partner, labels mixed by area.

Yun et al., "CutMix: regularization strategy to train strong classifiers with localizable features", ICCV
2019.
"""

import math

import torch

Box = tuple[int, int, int, int]
"""Top, left, bottom, right in pixels; the last two are outside."""


def cut_box(height: int, width: int, share: float, center_y: float, center_x: float) -> Box:
    """A box of ``1 - share`` of the area around a centre given by two numbers in [0, 1), cut at the edges."""
    y, x = int(center_y * height), int(center_x * width)
    ratio = 0.5 * math.sqrt(1 - share)
    half_height, half_width = int(ratio * height), int(ratio * width)
    return (
        max(y - half_height, 0),
        max(x - half_width, 0),
        min(y + half_height, height),
        min(x + half_width, width),
    )


def cutmix(
    images: torch.Tensor, targets: torch.Tensor, partners: torch.Tensor, box: Box
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the partner's ``box`` into each picture, and mix the targets by the box's true area.

    - images: ``[n, c, h, w]``; targets: probabilities ``[n, classes]``; partners: int64 ``[n]``.
    """
    top, left, bottom, right = box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right][partners]
    area = (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    return mixed, targets.lerp(targets[partners], area)
