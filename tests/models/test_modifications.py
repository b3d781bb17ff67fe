"""BlurPool, stochastic depth and gradient checkpointing."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from rebar.models.build import build_model, count_parameters
from rebar.models.modifications import (
    BlurPoolConv2d,
    apply_blurpool,
    apply_gradient_checkpointing,
    apply_stochastic_depth,
    drop_samples,
)
from rebar.models.resnets import last_batchnorms
from rebar.training.execution import seed_step

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


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_drop_samples_equals_torchvision_stochastic_depth(rate: float) -> None:
    x = torch.randn(2000, 3, 2, 2)
    torch.manual_seed(0)
    ours = drop_samples(x, rate)
    dropped = (ours.flatten(1) == 0).all(1).float().mean()
    assert dropped == pytest.approx(rate, abs=0.04)
    kept = (ours != 0).flatten(1).any(1)
    theirs = torchvision.ops.stochastic_depth(x[:1], rate, "row", training=True)
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


X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def saved_bytes(model: nn.Module) -> tuple[int, dict[str, torch.Tensor]]:
    """Return the bytes saved for the backward pass, and the loss, gradients and buffers after it."""
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(X).square().mean()
    forward = sum(saved.values())
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return forward, {**found, **dict(model.named_buffers()), "loss": loss.detach()}


def test_gradient_checkpointing_gives_identical_gradients_with_less_memory() -> None:
    torch.manual_seed(0)
    plain = build_model("resnet50", num_classes=5)
    checkpointed = copy.deepcopy(plain)
    assert apply_gradient_checkpointing(checkpointed) == 16
    assert checkpointed.state_dict().keys() == plain.state_dict().keys()
    for model in (plain, checkpointed):
        apply_stochastic_depth(model, 0.5)  # the recomputation must drop the same samples
    (plain_bytes, expected), (checkpointed_bytes, found) = saved_bytes(plain), saved_bytes(checkpointed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert checkpointed_bytes < plain_bytes / 2
    with torch.inference_mode():
        assert torch.equal(checkpointed.eval()(X), plain.eval()(X))


def test_gradient_checkpointing_updates_sync_batchnorm_once() -> None:
    torch.manual_seed(0)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(build_model("resnet10_small", num_classes=5))
    assert apply_gradient_checkpointing(model) == 4
    model(X).square().mean().backward()
    assert {int(value) for name, value in model.named_buffers() if name.endswith("num_batches_tracked")} == {1}


def test_gradient_checkpointing_returns_zero_for_model_without_stages() -> None:
    assert apply_gradient_checkpointing(build_model("squeezenet1_1", num_classes=5)) == 0
