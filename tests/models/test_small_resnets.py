"""ResNets that keep the resolution of small images."""

import pytest
import torch
from torch import nn

from rebar.errors import RebarError
from rebar.models.blurpool import apply_blurpool
from rebar.models.gradient_checkpointing import apply_gradient_checkpointing
from rebar.models.resnets import SMALL_RESNETS, block_ends, build_model, count_parameters


@pytest.mark.parametrize(
    ("arch", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_as_large_as_in_the_paper(arch: str, millions: float) -> None:
    """He et al., 2016, table 6."""
    assert count_parameters(build_model(arch, num_classes=10)) / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize("arch", SMALL_RESNETS)
def test_the_resolution_halves_from_stage_to_stage(arch: str) -> None:
    model = build_model(arch, num_classes=7, zero_init_residual=True)
    sides: list[int] = []
    for name, stage in model.named_children():
        if name.startswith("layer"):
            stage.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 7)
    assert sides == [28, 14, 7, 4][: len(SMALL_RESNETS[arch].widths)]
    layers = sum(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in model.modules())
    assert f"resnet{layers + 1}" == arch.removesuffix("_small")
    assert all((end.weight == 0).all() for end in block_ends(model))


def test_the_same_function_as_torchvisions_with_its_first_layers_replaced() -> None:
    torch.manual_seed(0)
    ours = build_model("resnet18_small", num_classes=5).eval()
    theirs = build_model("resnet18", num_classes=5).eval()
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images))


def test_what_is_done_to_networks_fits_them_too() -> None:
    model = build_model("resnet20", num_classes=5)
    assert apply_blurpool(model) == 4  # the first layer and the shortcut of two stages
    assert apply_gradient_checkpointing(model) == 9
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_there_are_no_weights_to_start_from() -> None:
    with pytest.raises(RebarError, match="no weights of a resnet20"):
        build_model("resnet20", num_classes=10, pretrained=True)
