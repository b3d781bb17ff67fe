"""MixUp, CutMix, or one of both at random, a batch at a time."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from rebar.loading.randomness import Stream
from rebar.training.regularization.cutmix import cut_box, cutmix
from rebar.training.regularization.mixup import mixup
from rebar.training.regularization.randomness import BatchPosition


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
        """Pictures and targets of a batch: the labels as they are where nothing mixes, else probabilities.

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
