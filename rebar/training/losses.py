"""What is minimised: cross-entropy, or binary cross-entropy of every class on its own.

Targets are labels, or probabilities where images are mixed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from rebar.config import option

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits ``[n, classes]`` and targets (int64 ``[n]``, or probabilities ``[n, classes]``) to a mean over the batch."""


@dataclass(frozen=True)
class LossConfig:
    """Loss."""

    loss_type: Literal["cross_entropy", "bce"] = option("cross_entropy", help="bce: each class a yes or no of its own")
    bce_threshold: float | None = option(
        None, help="bce: mixed and smoothed targets above it count as 1, others as 0", minimum=0, maximum=1
    )

    def switches(self) -> Mapping[str, tuple[str, bool]]:
        """What each setting depends on to have an effect, and whether that is on."""
        return {"bce_threshold": ("loss_type bce", self.loss_type == "bce")}


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, *, label_smoothing: float) -> torch.Tensor:
    """Of the softmax. Szegedy et al., "Rethinking the Inception architecture", CVPR 2016, for the smoothing."""
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def binary_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, *, label_smoothing: float, threshold: float | None = None
) -> torch.Tensor:
    """Summed over the classes (Beyer et al., "Are we done with ImageNet?", 2020; Wightman et al., "ResNet strikes
    back", 2021). A threshold makes every class that is in a mixed image count fully."""
    classes = logits.shape[1]
    if targets.dtype == torch.int64:
        targets = F.one_hot(targets, classes)
    soft = targets.to(torch.float32) * (1 - label_smoothing) + label_smoothing / classes
    if threshold is not None:
        soft = (soft > threshold).to(torch.float32)
    return F.binary_cross_entropy_with_logits(logits.to(torch.float32), soft, reduction="sum") / len(logits)


def build_criterion(config: LossConfig, *, label_smoothing: float) -> Criterion:
    """The loss that a configuration asks for."""
    if config.loss_type == "cross_entropy":
        return lambda logits, targets: cross_entropy(logits, targets, label_smoothing=label_smoothing)
    return lambda logits, targets: binary_cross_entropy(
        logits, targets, label_smoothing=label_smoothing, threshold=config.bce_threshold
    )
