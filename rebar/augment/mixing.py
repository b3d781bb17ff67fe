"""MixUp: images and labels blended in pairs.

Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018.

CutMix: a rectangle of each image from its partner, labels mixed by area.

Yun et al., "CutMix: regularization strategy to train strong classifiers with localizable features", ICCV
2019.

MixUp, CutMix, or one of both at random, a batch at a time.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from rebar.augment.rng import BatchPosition
from rebar.loading.rng import Stream


def mixup(
    images: torch.Tensor, targets: torch.Tensor, partners: torch.Tensor, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``share`` of each image and the rest of its partner's; targets likewise.

    - images: float ``[n, c, h, w]``; targets: probabilities ``[n, classes]``; partners: int64 ``[n]``.
    """
    mixed = images.lerp(_take(images, partners), 1 - share)
    return mixed, targets.lerp(targets[partners], 1 - share)


def _take(images: torch.Tensor, partners: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 2, 3, 1).index_select(0, partners).permute(0, 3, 1, 2)


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
    """Put the partner's ``box`` into each image, and mix the targets by the box's true area.

    - images: ``[n, c, h, w]``; targets: probabilities ``[n, classes]``; partners: int64 ``[n]``.
    """
    top, left, bottom, right = box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right][partners]
    area = (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    return mixed, targets.lerp(targets[partners], area)


@dataclass(frozen=True)
class Mixing:
    """How batches are mixed. The draws are one per global batch, the same in every process.

    Partners are neighbours: samples 2k and 2k + 1 of the (shuffled) global batch. So they are the same for
    any number of processes, as long as each has an even number of samples.
    """

    num_classes: int
    mixup_alpha: float = 0.0
    """Of the Beta distribution that the share is drawn from; 0: no MixUp."""
    cutmix_alpha: float = 0.0
    probability: float = 1.0
    """Share of the batches that are mixed."""
    cutmix_share: float = 0.5
    """Where both are on: share of the mixed batches that CutMix gets."""

    @property
    def enabled(self) -> bool:
        return (self.mixup_alpha > 0 or self.cutmix_alpha > 0) and self.probability > 0

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, position: BatchPosition
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and targets of a batch: the labels as they are where nothing mixes, else probabilities.

        Where mixing is on every batch gets probabilities ``[n, num_classes]``, mixed or not.
        """
        if not self.enabled:
            return images, labels
        targets = F.one_hot(labels, self.num_classes).to(torch.float32)
        draw = position.generator(Stream.MIXING)
        mixes, switch, center_y, center_x = draw.random(4).tolist()
        if mixes >= self.probability:
            return images, targets
        partners = neighbours(len(labels), labels.device)
        if self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or switch < self.cutmix_share):
            share = draw.beta(self.cutmix_alpha, self.cutmix_alpha)
            height, width = images.shape[2:]
            return cutmix(images, targets, partners, cut_box(height, width, share, center_y, center_x))
        return mixup(images, targets, partners, draw.beta(self.mixup_alpha, self.mixup_alpha))


def neighbours(count: int, device: torch.device) -> torch.Tensor:
    """The other one of each pair, int64 ``[count]``; the last of an odd number is its own partner."""
    return (torch.arange(count, device=device) ^ 1).clamp_(max=count - 1)
