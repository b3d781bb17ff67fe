"""Which networks can be built, and how."""

from typing import Any

import pytest
import torch
from torch import nn

from rebar.errors import RebarError
from rebar.models.resnets import build_model, count_parameters, import_torchvision, to_device


def pretend_to_download(monkeypatch: pytest.MonkeyPatch, outcome: Exception | None = None) -> None:
    """torchvision's weights, without the network: all 0.5, or an exception instead."""
    models = import_torchvision().models
    plain = models.get_model

    def get_model(arch: str, weights: str) -> nn.Module:
        assert weights == "DEFAULT"
        if outcome is not None:
            raise outcome
        model: nn.Module = plain(arch, weights=None)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)
        return model

    monkeypatch.setattr(models, "get_model", get_model)


@pytest.mark.parametrize(("num_classes", "parameters"), [(1000, 25_557_032), (10, 23_528_522)])
def test_resnet50_with_any_number_of_classes(num_classes: int, parameters: int) -> None:
    model = build_model("resnet50", num_classes=num_classes, use_blurpool=False)
    assert count_parameters(model) == parameters
    assert model.training
    assert model.fc.out_features == num_classes  # type: ignore[union-attr]


def test_the_seed_decides_the_weights() -> None:
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(build_model("resnet18", num_classes=2, use_blurpool=False).get_parameter("conv1.weight"))
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


@pytest.mark.parametrize(
    ("arch", "message"),
    [("resnet51", "there is no 'resnet51'; near it: .*resnet50"), ("zzz", "no 'zzz'; near it: nothing")],
)
def test_an_unknown_architecture_names_the_near_ones(arch: str, message: str) -> None:
    with pytest.raises(RebarError, match=message):
        build_model(arch, num_classes=2, use_blurpool=False)


def test_blurpool_without_effect_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    build_model("vgg11", num_classes=2, use_blurpool=True)
    assert "use_blurpool has no effect: vgg11" in capsys.readouterr().err
    build_model("resnet18", num_classes=2, use_blurpool=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("arch", "blocks"), [("resnet18", 8), ("resnet50", 16)])
def test_blocks_may_start_as_the_identity(arch: str, blocks: int) -> None:
    usual, steady = (build_model(arch, num_classes=2, zero_init_residual=zero) for zero in (False, True))
    zeros = [name for name, p in steady.named_parameters() if name.endswith("weight") and (p == 0).all()]
    assert len(zeros) == blocks
    assert {name.split(".")[2] for name in zeros} == {"bn2" if arch == "resnet18" else "bn3"}
    assert not any((p == 0).all() for name, p in usual.named_parameters() if name.endswith("weight"))


def test_pretrained_weights_with_a_head_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_to_download(monkeypatch)
    for num_classes, head_is_kept in ((1000, True), (7, False)):
        model = build_model("resnet18", num_classes=num_classes, use_blurpool=True, pretrained=True)
        assert (model.get_parameter("layer4.0.conv1.weight") == 0.5).all()
        assert model.get_parameter("fc.weight").shape == (num_classes, 512)
        assert bool((model.get_parameter("fc.weight") == 0.5).all()) == head_is_kept


@pytest.mark.parametrize(
    "outcome",
    [
        OSError("<urlopen error [Errno -2] Name or service not known>"),  # what torchvision raises offline
        ConnectionResetError("Connection reset by peer"),
        pytest.param(RuntimeError('invalid hash value (expected "f37072fd", got "e3b0c442")')),
    ],
    ids=lambda outcome: type(outcome).__name__,
)
def test_weights_that_cannot_be_downloaded(outcome: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_to_download(monkeypatch, outcome)
    with pytest.raises(RebarError, match="weights cannot be downloaded"):
        build_model("resnet18", num_classes=1000, use_blurpool=False, pretrained=True)


def test_pretrained_with_a_head_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_to_download(monkeypatch)
    with pytest.raises(RebarError, match="do not know how to fit the head of squeezenet1_1"):
        build_model("squeezenet1_1", num_classes=7, use_blurpool=False, pretrained=True)


def test_to_device_keeps_the_values_and_changes_the_layout() -> None:
    layers: list[Any] = [nn.Conv2d(3, 4, 3), nn.Linear(4, 2)]
    model = nn.Sequential(*layers)
    before = model[0].weight.detach().clone()
    moved = to_device(model, torch.device("cpu"))
    assert moved.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.get_parameter("0.weight"), before)


def test_frozen_parameters_are_not_counted() -> None:
    model = nn.Linear(3, 2)
    assert count_parameters(model) == 8
    model.bias.requires_grad_(False)
    assert count_parameters(model) == 6


@pytest.mark.parametrize(("arch", "last", "blocks"), [("resnet18", "bn2", 8), ("resnet50", "bn3", 16)])
def test_blocks_start_as_the_identity(arch: str, last: str, blocks: int) -> None:
    model = build_model(arch, num_classes=3, zero_init_residual=True)
    zeros = {name for name, parameter in model.named_parameters() if name.endswith("weight") and not parameter.any()}
    assert len(zeros) == blocks
    assert all(name.endswith(f"{last}.weight") for name in zeros)


def test_zero_init_residual_warns_where_there_are_no_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    build_model("alexnet", num_classes=3, zero_init_residual=True)
    assert "zero_init_residual has no effect" in capsys.readouterr().err


def test_auxiliary_outputs_are_refused() -> None:
    with pytest.raises(RebarError, match="auxiliary outputs"):
        build_model("googlenet", num_classes=3)
