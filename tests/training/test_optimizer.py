"""Which parameters decay."""

import pytest
import torch
from torch import nn

from rebar.training.model import build_model
from rebar.training.optimizer import OptimizerConfig, build_optimizer, parameter_groups, set_learning_rate


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    return build_model("resnet50", num_classes=10, use_blurpool=True)


def names_of_groups(model: nn.Module, *, decay_downsample_bn: bool = False) -> tuple[list[str], list[str]]:
    """The names of what does not decay, and of what does."""
    plain, decayed = parameter_groups(model, 0.5, decay_downsample_bn=decay_downsample_bn)
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0.0, 0.5)
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return [name_of[p] for p in plain["params"]], [name_of[p] for p in decayed["params"]]


@pytest.mark.parametrize("decay_downsample_bn", [False, True])
def test_every_parameter_exactly_once(decay_downsample_bn: bool, resnet50: nn.Module) -> None:
    plain, decayed = names_of_groups(resnet50, decay_downsample_bn=decay_downsample_bn)
    assert sorted(plain + decayed) == sorted(name for name, _ in resnet50.named_parameters())


def test_neither_normalisation_nor_biases_decay(resnet50: nn.Module) -> None:
    plain, decayed = names_of_groups(resnet50)
    assert len(plain) == 53 * 2 + 1  # weight and bias of 53 BatchNorms, and the classifier's bias
    assert {"bn1.weight", "layer1.0.downsample.1.weight", "layer1.0.downsample.1.bias", "fc.bias"} <= set(plain)
    assert len(decayed) == 53 + 1  # convolutions, and the classifier's weight
    assert all(resnet50.get_parameter(name).ndim in (2, 4) for name in decayed)


def test_ffcv_imagenets_grouping_goes_by_the_letters_bn(resnet50: nn.Module) -> None:
    plain, decayed = names_of_groups(resnet50, decay_downsample_bn=True)
    assert plain == [name for name, _ in resnet50.named_parameters() if "bn" in name]
    assert len(plain) == 49 * 2
    ours, _ = names_of_groups(resnet50)
    differing = {f"layer{n}.0.downsample.1.{kind}" for n in (1, 2, 3, 4) for kind in ("weight", "bias")}
    assert set(ours) - set(plain) == set(decayed) & set(ours) == differing | {"fc.bias"}


def test_other_normalisations_are_found_by_type() -> None:
    norms: list[nn.Module] = [nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.BatchNorm1d(4), nn.SyncBatchNorm(4)]
    plain, decayed = names_of_groups(nn.Sequential(*norms, nn.Linear(4, 4)))
    assert plain == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "3.weight", "3.bias", "4.bias"]
    assert decayed == ["4.weight"]


def test_only_what_decays_shrinks() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(1)
        model.bias.fill_(1)
    optimizer = build_optimizer("sgd", parameter_groups(model, 0.5), OptimizerConfig(), momentum=0.9, peak_lr=0.1)
    set_learning_rate(optimizer, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(model.weight, torch.tensor(1 - 0.1 * 0.5))
    assert torch.equal(model.bias, torch.ones(2))
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9]
