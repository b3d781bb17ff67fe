"""Tests of rebar.training.accumulation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rebar.training.accumulation import split_microbatches
from rebar.training.losses import LossConfig, build_criterion

IMAGES = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10) % 4


def gradients(count: int, targets: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return loss and gradient of the batch in ``count`` micro-batches, for a model without BatchNorm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.GELU(), nn.Flatten(), nn.Linear(180, 4))
    criterion, loss = build_criterion(LossConfig(), label_smoothing=0.1), 0.0
    for micro in split_microbatches(model, IMAGES, targets, LABELS, count=count):
        assert len(micro.images) == len(micro.targets) == len(micro.labels)
        part = criterion(model(micro.images), micro.targets) * micro.weight
        part.backward()
        loss += part.item()
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("targets", [LABELS, F.one_hot(LABELS, 4).float().lerp(torch.full((4,), 0.25), 0.3)])
@pytest.mark.parametrize("count", [2, 3, 10, 25])  # 3 micro-batches have 4, 3 and 3 samples
def test_microbatches_have_the_gradient_of_the_batch(count: int, targets: torch.Tensor) -> None:
    loss, gradient = gradients(1, targets)
    again, summed = gradients(count, targets)
    assert again == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(summed, gradient, rtol=1e-5, atol=1e-7)


def test_ddp_reduces_gradients_with_the_last_microbatch_only() -> None:
    class Wrapped(nn.Module):
        """Records whether no_sync is active, like DistributedDataParallel."""

        syncs = True

        def no_sync(self) -> "Wrapped":
            return self

        def __enter__(self) -> None:
            self.syncs = False

        def __exit__(self, *_: object) -> None:
            self.syncs = True

    model = Wrapped()
    assert [model.syncs for _ in split_microbatches(model, IMAGES, LABELS, LABELS, count=3)] == [False, False, True]
    assert model.syncs
