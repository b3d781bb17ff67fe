"""Forgetting and computing again changes nothing but the memory."""

import copy

import torch
from torch import nn

from rebar.models.gradient_checkpointing import apply_gradient_checkpointing
from rebar.models.resnets import build_model
from rebar.models.stochastic_depth import apply_stochastic_depth

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def saved_bytes(model: nn.Module) -> tuple[int, dict[str, torch.Tensor]]:
    """What the forward pass keeps, and all that a step leaves: loss, gradients, buffers."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(X).square().mean()
    forward = sum(kept.values())
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return forward, {**found, **dict(model.named_buffers()), "loss": loss.detach()}


def test_loss_gradients_and_statistics_are_the_same_with_less_kept() -> None:
    torch.manual_seed(0)
    plain = build_model("resnet50", num_classes=5)
    checkpointed = copy.deepcopy(plain)
    assert apply_gradient_checkpointing(checkpointed) == 16
    assert checkpointed.state_dict().keys() == plain.state_dict().keys()
    for model in (plain, checkpointed):
        apply_stochastic_depth(model, 0.5)  # the same samples must be dropped the second time
    (much, expected), (little, found) = saved_bytes(plain), saved_bytes(checkpointed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert little < much / 2
    with torch.inference_mode():
        assert torch.equal(checkpointed.eval()(X), plain.eval()(X))


def test_synchronised_statistics_count_a_batch_once() -> None:
    torch.manual_seed(0)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(build_model("resnet18", num_classes=5))
    assert apply_gradient_checkpointing(model) == 8
    model(X).square().mean().backward()
    assert {int(value) for name, value in model.named_buffers() if name.endswith("num_batches_tracked")} == {1}


def test_a_model_without_stages_is_told() -> None:
    assert apply_gradient_checkpointing(build_model("alexnet", num_classes=5)) == 0
