"""The variants that benchmarks/gpu_proof measures compute the same numbers."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.gpu_proof.variants import FLIP_TTA, Logits, blur_then_convolve, convolve_with_folded_blur
from rebar.models.build import build_model
from rebar.models.modifications import BlurPoolConv2d

Blur = Callable[[BlurPoolConv2d, torch.Tensor], torch.Tensor]


@pytest.mark.parametrize("variant", [blur_then_convolve, convolve_with_folded_blur])
@pytest.mark.parametrize("size", [(14, 14), (9, 12), (7, 3), (1, 2)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 1, "stride": 2, "bias": False},
        {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 4},
    ],
    ids=str,
)
def test_blur_variants_equal_the_layer(options: dict[str, Any], size: tuple[int, int], variant: Blur) -> None:
    torch.manual_seed(0)
    layer = BlurPoolConv2d.wrap(nn.Conv2d(16, 24, **options).double())
    x = torch.randn(2, 16, *size, dtype=torch.double, requires_grad=True)
    expected, found = layer(x), variant(layer, x)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((expected * weights).sum(), [x, layer.weight]),
        torch.autograd.grad((found * weights).sum(), [x, layer.weight]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_folded_blur_refuses_other_paddings() -> None:
    layer = BlurPoolConv2d.wrap(nn.Conv2d(16, 16, 5, stride=2, padding=2))
    with pytest.raises(ValueError, match="not supported"):
        convolve_with_folded_blur(layer, torch.zeros(1, 16, 8, 8))


@pytest.mark.parametrize("variant", [blur_then_convolve, convolve_with_folded_blur])
def test_blur_variants_equal_the_model(variant: Blur) -> None:
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=10, use_blurpool=True)
    changed = copy.deepcopy(model)
    layers = [module for module in changed.modules() if isinstance(module, BlurPoolConv2d)]
    for layer in layers:
        layer.forward = functools.partial(variant, layer)  # type: ignore[method-assign]
    images = torch.randn(2, 3, 64, 64)
    assert len(layers) == 6
    torch.testing.assert_close(changed(images), model(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("predict", FLIP_TTA.values())
@pytest.mark.parametrize("count", [1, 5, 8])
def test_flip_tta_variants_are_equal(predict: Callable[[nn.Module, torch.Tensor], Logits], count: int) -> None:
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=10).eval()
    images = torch.randn(count, 3, 32, 48)
    with torch.inference_mode():
        original, flipped = predict(model, images)
        torch.testing.assert_close(original, model(images), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(flipped, model(images.flip(3)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(original, flipped, rtol=1e-2)
