"""Random erasing, and MixUp and CutMix, or one of the two at random per batch. All change normalized images.

Zhong et al., "Random erasing data augmentation", AAAI 2020; the distribution is that of torchvision's RandomErasing.
Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018. Yun et al., "CutMix: regularization strategy to
train strong classifiers with localizable features", ICCV 2019.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rebar.augment.transforms import take, upload
from rebar.loading.rng import BatchPosition, Stream

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


def mixup(
    images: torch.Tensor, targets: torch.Tensor, partners: torch.Tensor, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend ``lam`` of each image with ``1 - lam`` of its partner, and the targets likewise.

    - images: float ``[n, c, h, w]``; targets: probabilities ``[n, classes]``; partners: int64 ``[n]``.
    """
    mixed = images.lerp(take(images, partners), 1 - lam)
    return mixed, targets.lerp(targets[partners], 1 - lam)


Box = tuple[int, int, int, int]
"""Top, left, bottom, right in pixels; bottom and right are exclusive."""


def cut_box(height: int, width: int, lam: float, center_y: float, center_x: float) -> Box:
    """Return a box of ``1 - lam`` of the area, clipped to the image; the center is in fractions of height and width."""
    y, x = int(center_y * height), int(center_x * width)
    ratio = 0.5 * math.sqrt(1 - lam)
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
    """Paste each partner's ``box`` into the image, and mix the targets by the box's area.

    - images: ``[n, c, h, w]``; targets: probabilities ``[n, classes]``; partners: int64 ``[n]``.
    """
    top, left, bottom, right = box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right][partners]
    area = (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    return mixed, targets.lerp(targets[partners], area)


def one_hot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return float32 probabilities ``[n, num_classes]`` of int64 labels ``[n]``, without a CPU-GPU sync."""
    zeros = torch.zeros(len(labels), num_classes, device=labels.device)
    return zeros.scatter_(1, labels[:, None], 1.0)


@dataclass(frozen=True)
class Mixing:
    """Applies MixUp or CutMix. The random draws are per global batch and the same on every rank.

    Partners are the samples 2k and 2k + 1 of the shuffled global batch. They do not depend on the number of ranks, as
    long as each rank has an even number of samples.
    """

    num_classes: int
    mixup_alpha: float = 0.0
    """The parameter of the Beta distribution of ``lam``; 0 disables MixUp."""
    cutmix_alpha: float = 0.0
    """The parameter of the Beta distribution of ``lam``; 0 disables CutMix."""
    probability: float = 1.0
    """The probability that a batch is mixed."""
    cutmix_share: float = 0.5
    """With both MixUp and CutMix: the probability of CutMix."""

    @property
    def enabled(self) -> bool:
        """Whether any batch is mixed."""
        return (self.mixup_alpha > 0 or self.cutmix_alpha > 0) and self.probability > 0

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, position: BatchPosition
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and targets: probabilities ``[n, num_classes]`` if mixing is enabled, else the labels."""
        if not self.enabled:
            return images, labels
        targets = one_hot(labels, self.num_classes)
        drawn = self.draw(position)
        if drawn is None:
            return images, targets
        partners = neighbors(len(labels), labels.device)
        if drawn.center is None:
            return mixup(images, targets, partners, drawn.lam)
        height, width = images.shape[2:]
        return cutmix(images, targets, partners, cut_box(height, width, drawn.lam, *drawn.center))

    def draw(self, position: BatchPosition) -> "Mix | None":
        """Return how the batch is mixed; None if it is not."""
        if not self.enabled:
            return None
        generator = position.generator(Stream.MIXING)
        mix_draw, switch_draw, center_y, center_x = generator.random(4).tolist()
        if mix_draw >= self.probability:
            return None
        if self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or switch_draw < self.cutmix_share):
            return Mix(generator.beta(self.cutmix_alpha, self.cutmix_alpha), (center_y, center_x))
        return Mix(generator.beta(self.mixup_alpha, self.mixup_alpha))


@dataclass(frozen=True)
class Mix:
    """The random draws of one batch."""

    lam: float
    """The weight of each image; that of its partner is the rest. CutMix clips the box, so its area may be smaller."""
    center: tuple[float, float] | None = None
    """The center of CutMix's box in fractions of height and width; None for MixUp."""


def neighbors(count: int, device: torch.device) -> torch.Tensor:
    """Return the partner of each sample in pairs, int64 ``[count]``. The last of an odd number is its own partner."""
    return (torch.arange(count, device=device) ^ 1).clamp_(max=count - 1)
