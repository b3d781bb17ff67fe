"""Losses, compared with their formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rebar.training.losses import build_criterion
from rebar.training.options import LossConfig

torch.manual_seed(0)
LOGITS = torch.randn(4, 5)
LABELS = torch.tensor([0, 3, 1, 4])
MIXED = 0.7 * F.one_hot(LABELS, 5) + 0.3 * F.one_hot(LABELS.roll(1), 5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_labels_and_mixed_targets(smoothing: float) -> None:
    criterion = build_criterion(LossConfig(), label_smoothing=smoothing)
    assert torch.equal(criterion(LOGITS, LABELS), nn.CrossEntropyLoss(label_smoothing=smoothing)(LOGITS, LABELS))
    blend = 0.7 * criterion(LOGITS, LABELS) + 0.3 * criterion(LOGITS, LABELS.roll(1))
    torch.testing.assert_close(criterion(LOGITS, MIXED), blend)


def bce(targets: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy by its formula, summed over the classes."""
    p = torch.sigmoid(LOGITS)
    return -(targets * p.log() + (1 - targets) * (1 - p).log()).sum(1).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.08])
def test_binary_cross_entropy_equals_formula(smoothing: float) -> None:
    criterion = build_criterion(LossConfig(loss_type="bce"), label_smoothing=smoothing)
    for targets in (LABELS, MIXED):
        soft = (F.one_hot(LABELS, 5) if targets is LABELS else MIXED) * (1 - smoothing) + smoothing / 5
        torch.testing.assert_close(criterion(LOGITS, targets), bce(soft))


def test_bce_threshold_sets_all_mixed_classes_to_one() -> None:
    criterion = build_criterion(LossConfig(loss_type="bce", bce_threshold=0.2), label_smoothing=0.1)
    both = F.one_hot(LABELS, 5) + F.one_hot(LABELS.roll(1), 5)
    torch.testing.assert_close(criterion(LOGITS, MIXED), bce(both.float()))
