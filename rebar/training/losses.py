"""Losses: cross-entropy, and binary cross-entropy over all classes.

Targets are labels, or class probabilities with MixUp and CutMix.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from rebar.augment.mixing import one_hot
from rebar.training.options import LossConfig

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps logits ``[n, classes]`` and targets (int64 ``[n]`` or probabilities ``[n, classes]``) to the mean loss."""


def binary_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, *, label_smoothing: float, threshold: float | None = None
) -> torch.Tensor:
    """Compute binary cross-entropy, summed over the classes and averaged over the batch.

    With a threshold, every class of a mixed image is a positive. Beyer et al., "Are we done with ImageNet?", 2020;
    Wightman et al., "ResNet strikes back", 2021.
    """
    classes = logits.shape[1]
    if targets.dtype == torch.int64:
        targets = one_hot(targets, classes)
    soft = targets.to(torch.float32) * (1 - label_smoothing) + label_smoothing / classes
    if threshold is not None:
        soft = (soft > threshold).to(torch.float32)
    return F.binary_cross_entropy_with_logits(logits.to(torch.float32), soft, reduction="sum") / len(logits)


def build_criterion(config: LossConfig, *, label_smoothing: float) -> Criterion:
    """Return the configured loss function."""
    if config.loss_type == "cross_entropy":
        return lambda logits, targets: F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    return lambda logits, targets: binary_cross_entropy(
        logits, targets, label_smoothing=label_smoothing, threshold=config.bce_threshold
    )
