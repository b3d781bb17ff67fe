"""``build_model`` and ``build_network``: architectures, initialization, pretrained weights, warnings and errors."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from rebar.errors import RebarError
from rebar.models.build import build_model, build_network, count_parameters, init_bce_bias, to_device


def mock_download(monkeypatch: pytest.MonkeyPatch, outcome: Exception | None = None) -> None:
    """Replace the download of torchvision's weights: every weight is 0.5, or an exception is raised."""
    models = torchvision.models
    get_untrained_model = models.get_model

    def get_model(arch: str, weights: str) -> nn.Module:
        assert weights == "DEFAULT"
        if outcome is not None:
            raise outcome
        model: nn.Module = get_untrained_model(arch, weights=None)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)
        return model

    monkeypatch.setattr(models, "get_model", get_model)


@pytest.mark.parametrize(("num_classes", "parameters"), [(1000, 25_557_032), (10, 23_528_522)])
def test_build_model_resnet50_has_published_parameter_count(num_classes: int, parameters: int) -> None:
    model = build_model("resnet50", num_classes=num_classes)
    assert count_parameters(model) == parameters
    assert model.training
    assert model.fc.out_features == num_classes  # type: ignore[union-attr]


def test_build_model_initializes_from_torch_seed() -> None:
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(build_model("resnet18", num_classes=2).get_parameter("conv1.weight"))
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


@pytest.mark.parametrize(("arch", "suggestion"), [("resnet51", "resnet50"), ("zzz", None)])
def test_build_model_suggests_similar_architectures(arch: str, suggestion: str | None) -> None:
    with pytest.raises(RebarError) as caught:
        build_model(arch, num_classes=2)
    assert caught.value.code == "model-unknown-arch"
    assert arch in str(caught.value)
    assert ("Did you mean" in str(caught.value)) == (suggestion is not None)
    assert suggestion is None or suggestion in str(caught.value)


def test_build_model_warns_if_blurpool_has_no_effect(capsys: pytest.CaptureFixture[str]) -> None:
    build_model("squeezenet1_1", num_classes=2, use_blurpool=True)
    assert "use_blurpool has no effect: squeezenet1_1" in capsys.readouterr().err
    build_model("resnet18", num_classes=2, use_blurpool=True)
    assert capsys.readouterr().err == ""


def test_build_model_resizes_pretrained_classifier_only_if_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    mock_download(monkeypatch)
    for num_classes, classifier_is_kept in ((1000, True), (7, False)):
        model = build_model("resnet18", num_classes=num_classes, use_blurpool=True, pretrained=True)
        assert (model.get_parameter("layer4.0.conv1.weight") == 0.5).all()
        assert model.get_parameter("fc.weight").shape == (num_classes, 512)
        assert bool((model.get_parameter("fc.weight") == 0.5).all()) == classifier_is_kept


@pytest.mark.parametrize(
    "outcome",
    [
        OSError("<urlopen error [Errno -2] Name or service not known>"),  # torchvision's error without a network
        ConnectionResetError("Connection reset by peer"),
        pytest.param(RuntimeError('invalid hash value (expected "f37072fd", got "e3b0c442")')),
    ],
    ids=lambda outcome: type(outcome).__name__,
)
def test_build_model_reports_failed_download(outcome: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    mock_download(monkeypatch, outcome)
    with pytest.raises(RebarError) as caught:
        build_model("resnet18", num_classes=1000, pretrained=True)
    assert caught.value.code == "model-download-failed"
    assert str(outcome) in str(caught.value)


def test_build_model_refuses_to_resize_unknown_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    mock_download(monkeypatch)
    with pytest.raises(RebarError) as caught:
        build_model("squeezenet1_1", num_classes=7, pretrained=True)
    assert caught.value.code == "model-unsupported-arch"


def test_to_device_keeps_values_and_changes_memory_format() -> None:
    layers: list[Any] = [nn.Conv2d(3, 4, 3), nn.Linear(4, 2)]
    model = nn.Sequential(*layers)
    before = model[0].weight.detach().clone()
    moved = to_device(model, torch.device("cpu"))
    assert moved.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.get_parameter("0.weight"), before)


def test_count_parameters_ignores_frozen_parameters() -> None:
    model = nn.Linear(3, 2)
    assert count_parameters(model) == 8
    model.bias.requires_grad_(False)
    assert count_parameters(model) == 6


@pytest.mark.parametrize(("arch", "last", "blocks"), [("resnet18", "bn2", 8), ("resnet50", "bn3", 16)])
def test_zero_init_residual_sets_last_batchnorm_of_each_block_to_zero(arch: str, last: str, blocks: int) -> None:
    def zero_weights(zero_init_residual: bool) -> set[str]:
        model = build_model(arch, num_classes=3, zero_init_residual=zero_init_residual)
        return {name for name, p in model.named_parameters() if name.endswith("weight") and not p.any()}

    assert zero_weights(False) == set()
    assert len(zero_weights(True)) == blocks
    assert all(name.endswith(f"{last}.weight") for name in zero_weights(True))


def test_build_model_warns_if_zero_init_residual_has_no_effect(capsys: pytest.CaptureFixture[str]) -> None:
    build_model("squeezenet1_1", num_classes=3, zero_init_residual=True)
    assert "zero_init_residual has no effect" in capsys.readouterr().err


def test_build_model_rejects_auxiliary_classifiers() -> None:
    with pytest.raises(RebarError) as caught:
        build_model("googlenet", num_classes=3)
    assert caught.value.code == "model-unsupported-arch"


def test_build_network_keeps_the_names_of_the_plain_model() -> None:
    plain = build_network("resnet20", num_classes=4, device=torch.device("cpu"))
    changed = build_network(
        "resnet20",
        num_classes=4,
        device=torch.device("cpu"),
        bce_bias=True,
        sync_batchnorm=True,
        gradient_checkpointing=True,
        stochastic_depth=0.2,
    )
    assert changed.state_dict().keys() == plain.state_dict().keys()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in changed.modules())


def test_build_network_warns_about_options_without_effect(capsys: pytest.CaptureFixture[str]) -> None:
    build_network(
        "squeezenet1_1", num_classes=4, device=torch.device("cpu"), gradient_checkpointing=True, stochastic_depth=0.1
    )
    err = capsys.readouterr().err
    for name in ("execution.gradient_checkpointing", "regularization.stochastic_depth"):
        assert f"warning: {name} has no effect" in err


def test_init_bce_bias_sets_minus_log_of_the_number_of_classes() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 100))
    assert init_bce_bias(model, 100) == 1
    assert torch.allclose(model[1].bias, torch.tensor(-math.log(100)))
    assert init_bce_bias(nn.Sequential(nn.Linear(3, 4, bias=False)), 4) == 0
    assert init_bce_bias(nn.Sequential(nn.Linear(3, 4)), 5) == 0


def test_build_model_calls_a_builder_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_model.py").write_text(
        "from torch import nn\n\ndef build(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert build_model("own_model:build", num_classes=5)(torch.zeros(2, 3, 2, 2)).shape == (2, 5)
    for arch in ("own_model:missing", "own_model:__name__", "missing_module:build", ":"):
        with pytest.raises(RebarError) as caught:
            build_model(arch, num_classes=5)
        assert caught.value.code == "model-unknown-arch"
    with pytest.raises(RebarError) as caught:
        build_model("own_model:build", num_classes=5, pretrained=True)
    assert caught.value.code == "model-no-pretrained-weights"
