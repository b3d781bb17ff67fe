"""BlurPool: a 3x3 blur, then the convolution with its own weights."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rebar.models.blurpool import BlurPoolConv2d, apply_blurpool
from rebar.models.build import build_model, count_parameters

KERNEL = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16


def blur_per_channel(x: torch.Tensor) -> torch.Tensor:
    """Blur each channel separately, with zero padding."""
    channels = [F.conv2d(x[:, c : c + 1], KERNEL[None, None], stride=1, padding=1) for c in range(x.shape[1])]
    return torch.cat(channels, dim=1)


def resnet50(*, use_blurpool: bool, num_classes: int = 1000) -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet50", num_classes=num_classes, use_blurpool=use_blurpool)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 1, "stride": 2, "bias": False},
        {"kernel_size": 7, "stride": (2, 1), "padding": 3, "dilation": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 4},
        {"kernel_size": 3, "stride": 2, "padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_blurpool_convolves_blurred_input(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 24, **options)
    x = torch.randn(2, 16, 21, 18)
    expected = conv(blur_per_channel(x))
    assert torch.allclose(BlurPoolConv2d.wrap(conv)(x), expected, atol=1e-5)
    assert not torch.allclose(conv(x), expected, atol=1e-2)


def test_blurpool_wrap_shares_parameters() -> None:
    conv = nn.Conv2d(16, 8, 3, stride=2)
    before = conv.weight.detach().clone()
    blurred = BlurPoolConv2d.wrap(conv)
    assert blurred.weight is conv.weight
    assert blurred.bias is conv.bias
    assert torch.equal(conv.weight, before)
    assert blurred.state_dict().keys() == conv.state_dict().keys()


def test_apply_blurpool_replaces_strided_convolutions_with_16_channels() -> None:
    model = nn.Sequential(
        nn.Conv2d(16, 16, 3, stride=2),
        nn.Conv2d(15, 16, 3, stride=2),  # too few channels
        nn.Conv2d(64, 16, 3, stride=1),  # no stride
        nn.Sequential(nn.Conv2d(64, 64, 1, stride=(1, 2)), nn.MaxPool2d(2)),
    )
    kept = [model[1], model[2]]
    assert apply_blurpool(model) == 2
    assert isinstance(model[0], BlurPoolConv2d)
    assert [model[1], model[2]] == kept
    assert isinstance(model[3][0], BlurPoolConv2d)
    assert apply_blurpool(nn.Sequential(nn.Conv2d(3, 64, 7, stride=2))) == 0


def test_apply_blurpool_on_resnet50_matches_ffcv_imagenet() -> None:
    plain, blurred = resnet50(use_blurpool=False), resnet50(use_blurpool=True)
    names = [name for name, module in blurred.named_modules() if isinstance(module, BlurPoolConv2d)]
    assert names == [f"layer{n}.0.{part}" for n in (2, 3, 4) for part in ("conv2", "downsample.0")]
    assert count_parameters(plain) == count_parameters(blurred) == 25_557_032
    for (name, a), (same_name, b) in zip(plain.named_parameters(), blurred.named_parameters(), strict=True):
        assert name == same_name
        assert torch.equal(a, b), name  # the same initialization


def test_blurpool_state_dict_is_interchangeable_with_plain_model() -> None:
    plain, blurred = (resnet50(use_blurpool=blur, num_classes=2) for blur in (False, True))
    assert list(plain.state_dict()) == list(blurred.state_dict())
    with torch.no_grad():
        plain.get_parameter("layer2.0.conv2.weight").fill_(7)
    blurred.load_state_dict(plain.state_dict())
    assert (blurred.get_parameter("layer2.0.conv2.weight") == 7).all()
    plain.load_state_dict(blurred.state_dict())


def test_blurpool_backpropagates_under_bf16_autocast() -> None:
    blurred = BlurPoolConv2d.wrap(nn.Conv2d(16, 4, 3, stride=2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        blurred(torch.randn(1, 16, 8, 8)).float().sum().backward()
    assert blurred.weight.grad is not None
    assert blurred.weight.grad.abs().sum() > 0
