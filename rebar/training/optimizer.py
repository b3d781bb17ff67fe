"""SGD, and which parameters decay."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def parameter_groups(
    model: nn.Module, weight_decay: float, *, decay_downsample_bn: bool = False
) -> list[dict[str, Any]]:
    """Two optimizer groups: without weight decay, and with.

    Normalisation layers (found by type) and biases do not decay. ``decay_downsample_bn`` groups as
    ffcv-imagenet does instead, by the letters 'bn' in the name: there the BatchNorms of the downsampling
    branches and the classifier's bias decay too.
    """
    normalisation = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm))
        for parameter in module.parameters(recurse=False)
    }
    plain: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if decay_downsample_bn:
            exempt = "bn" in name
        else:
            exempt = id(parameter) in normalisation or name.rpartition(".")[2] == "bias"
        (plain if exempt else decayed).append(parameter)
    return [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def build_sgd(groups: list[dict[str, Any]], *, momentum: float) -> torch.optim.SGD:
    """SGD over parameter groups; the loop sets the learning rate at every step."""
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give all groups one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
