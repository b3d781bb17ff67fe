"""Stochastic depth: the right share of samples skips the right blocks, in training only."""

import copy

import pytest
import torch
from torch import nn

from rebar.models.resnets import block_ends, build_model, import_torchvision
from rebar.models.stochastic_depth import apply_stochastic_depth, drop_samples
from rebar.training.execution import seed_step


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropping_is_torchvisions(rate: float) -> None:
    x = torch.randn(2000, 3, 2, 2)
    torch.manual_seed(0)
    ours = drop_samples(x, rate)
    share = (ours.flatten(1) == 0).all(1).float().mean()
    assert share == pytest.approx(rate, abs=0.04)
    kept = (ours != 0).flatten(1).any(1)
    theirs = import_torchvision().ops.stochastic_depth(x[:1], rate, "row", training=True)
    scale = (theirs / x[:1]).mean() if theirs.any() else torch.tensor(1 / (1 - rate))
    torch.testing.assert_close(ours[kept], x[kept] * scale)


def test_the_rate_grows_with_depth_and_evaluation_drops_nothing() -> None:
    torch.manual_seed(0)
    model = build_model("resnet50", num_classes=5)
    plain = copy.deepcopy(model)
    assert apply_stochastic_depth(model, 0.3) == 15
    hooks = [list(end._forward_hooks.values()) for end in block_ends(model)]
    rates = [hook[0].rate if hook else 0.0 for hook in hooks]
    assert rates == pytest.approx([0.3 * depth / 15 for depth in range(16)])
    assert model.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    assert not torch.equal(model.train()(x), plain.train()(x))


def test_a_skipped_block_is_its_shortcut() -> None:
    model = build_model("resnet18", num_classes=5)
    apply_stochastic_depth(model, 0.99)
    block = model.layer4[1]
    x = torch.rand(300, 512, 1, 1)
    torch.manual_seed(0)
    y = block(x)
    skipped = (y == x).flatten(1).all(1)
    assert 0.95 < skipped.float().mean() < 1


def test_a_copy_drops_too_and_a_model_without_blocks_is_told() -> None:
    model = build_model("resnet18", num_classes=5)
    apply_stochastic_depth(model, 0.5)
    assert all(end._forward_hooks for end in list(block_ends(copy.deepcopy(model)))[1:])
    assert apply_stochastic_depth(nn.Sequential(nn.Linear(2, 2)), 0.5) == 0


def test_a_steps_draws_are_its_own() -> None:
    def draw(*key: int) -> list[float]:
        seed_step(*key)
        return torch.rand(3).tolist()

    first = draw(0, 7, 0)
    assert draw(0, 7, 0) == first
    assert len({tuple(draw(*key)) for key in [(0, 7, 0), (1, 7, 0), (0, 8, 0), (0, 7, 1)]}) == 4
