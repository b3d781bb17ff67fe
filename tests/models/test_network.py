"""Tests of rebar.models.network."""

import math

import pytest
import torch
from torch import nn

from rebar.models.network import build_network, init_bce_bias

CPU = torch.device("cpu")


def test_build_network_keeps_the_names_of_the_plain_model() -> None:
    plain = build_network("resnet20", num_classes=4, device=CPU)
    changed = build_network(
        "resnet20",
        num_classes=4,
        device=CPU,
        bce_bias=True,
        sync_batchnorm=True,
        gradient_checkpointing=True,
        stochastic_depth=0.2,
    )
    assert changed.state_dict().keys() == plain.state_dict().keys()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in changed.modules())


def test_build_network_warns_of_options_without_effect(capsys: pytest.CaptureFixture[str]) -> None:
    build_network("squeezenet1_1", num_classes=4, device=CPU, gradient_checkpointing=True, stochastic_depth=0.1)
    err = capsys.readouterr().err
    for name in ("execution.gradient_checkpointing", "regularization.stochastic_depth"):
        assert f"warning: {name} has no effect" in err


def test_init_bce_bias_sets_minus_log_of_the_number_of_classes() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 100))
    assert init_bce_bias(model, 100) == 1
    assert torch.allclose(model[1].bias, torch.tensor(-math.log(100)))
    assert init_bce_bias(nn.Sequential(nn.Linear(3, 4, bias=False)), 4) == 0
    assert init_bce_bias(nn.Sequential(nn.Linear(3, 4)), 5) == 0
