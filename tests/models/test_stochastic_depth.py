"""Stochastic depth: samples skip residual blocks at the expected rates, in training only."""

import copy

import pytest
import torch
from torch import nn

from rebar.models.build import build_model
from rebar.models.resnets import last_batchnorms
from rebar.models.stochastic_depth import apply_stochastic_depth, drop_samples
from rebar.models.torchvision_compat import import_torchvision
from rebar.training.execution import seed_step


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_drop_samples_equals_torchvision_stochastic_depth(rate: float) -> None:
    x = torch.randn(2000, 3, 2, 2)
    torch.manual_seed(0)
    ours = drop_samples(x, rate)
    dropped = (ours.flatten(1) == 0).all(1).float().mean()
    assert dropped == pytest.approx(rate, abs=0.04)
    kept = (ours != 0).flatten(1).any(1)
    theirs = import_torchvision().ops.stochastic_depth(x[:1], rate, "row", training=True)
    scale = (theirs / x[:1]).mean() if theirs.any() else torch.tensor(1 / (1 - rate))
    torch.testing.assert_close(ours[kept], x[kept] * scale)


def test_stochastic_depth_rate_grows_with_depth_and_is_zero_in_eval_mode() -> None:
    torch.manual_seed(0)
    model = build_model("resnet50", num_classes=5)
    plain = copy.deepcopy(model)
    assert apply_stochastic_depth(model, 0.3) == 15
    hooks = [list(norm._forward_hooks.values()) for norm in last_batchnorms(model)]
    rates = [hook[0].rate if hook else 0.0 for hook in hooks]
    assert rates == pytest.approx([0.3 * depth / 15 for depth in range(16)])
    assert model.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    assert not torch.equal(model.train()(x), plain.train()(x))


def test_dropped_block_returns_its_shortcut() -> None:
    model = build_model("resnet20", num_classes=5)
    apply_stochastic_depth(model, 0.99)
    block = model.layer3[2]
    x = torch.rand(300, 64, 1, 1)
    torch.manual_seed(0)
    y = block(x)
    dropped = (y == x).flatten(1).all(1)
    assert 0.95 < dropped.float().mean() < 1


def test_stochastic_depth_survives_deepcopy_and_ignores_model_without_blocks() -> None:
    model = build_model("resnet10_small", num_classes=5)
    apply_stochastic_depth(model, 0.5)
    assert all(norm._forward_hooks for norm in list(last_batchnorms(copy.deepcopy(model)))[1:])
    assert apply_stochastic_depth(nn.Sequential(nn.Linear(2, 2)), 0.5) == 0


def test_seed_step_gives_each_step_and_rank_its_own_random_numbers() -> None:
    def draw(*key: int) -> list[float]:
        seed_step(*key)
        return torch.rand(3).tolist()

    first = draw(0, 7, 0)
    assert draw(0, 7, 0) == first
    assert len({tuple(draw(*key)) for key in [(0, 7, 0), (1, 7, 0), (0, 8, 0), (0, 7, 1)]}) == 4
