"""ResNets for small images."""

import pytest
import torch
from torch import nn

from rebar.errors import RebarError
from rebar.models.build import build_model, count_parameters
from rebar.models.modifications import apply_blurpool, apply_gradient_checkpointing
from rebar.models.resnets import SMALL_RESNETS, last_batchnorms


@pytest.mark.parametrize(
    ("arch", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_small_resnets_have_published_parameter_counts(arch: str, millions: float) -> None:
    """He et al., 2016, table 6."""
    assert count_parameters(build_model(arch, num_classes=10)) / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize("arch", SMALL_RESNETS)
def test_small_resnets_halve_resolution_between_stages(arch: str) -> None:
    model = build_model(arch, num_classes=7, zero_init_residual=True)
    resolutions: list[int] = []
    for name, stage in model.named_children():
        if name.startswith("layer"):
            stage.register_forward_hook(lambda module, inputs, output: resolutions.append(output.shape[-1]))
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 7)
    assert resolutions == [28, 14, 7, 4][: len(SMALL_RESNETS[arch].widths)]
    layers = sum(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in model.modules())
    assert f"resnet{layers + 1}" == arch.removesuffix("_small")
    assert all((norm.weight == 0).all() for norm in last_batchnorms(model))


def test_resnet18_small_equals_torchvision_resnet18_with_small_stem() -> None:
    torch.manual_seed(0)
    ours = build_model("resnet18_small", num_classes=5).eval()
    theirs = build_model("resnet18", num_classes=5).eval()
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images))


def test_blurpool_and_gradient_checkpointing_apply_to_small_resnets() -> None:
    model = build_model("resnet20", num_classes=5)
    assert apply_blurpool(model) == 4  # conv1 and the shortcut, in two stages
    assert apply_gradient_checkpointing(model) == 9
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_small_resnets_have_no_pretrained_weights() -> None:
    with pytest.raises(RebarError) as caught:
        build_model("resnet20", num_classes=10, pretrained=True)
    assert caught.value.code == "model-no-pretrained-weights"
