"""Gradient checkpointing changes memory use only."""

import copy

import torch
from torch import nn

from rebar.models.build import build_model
from rebar.models.gradient_checkpointing import apply_gradient_checkpointing
from rebar.models.stochastic_depth import apply_stochastic_depth

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
