"""Build the network of a training run: the model, its initial weights, and the techniques that change it."""

import math

import torch
from torch import nn

from rebar.cli import warn
from rebar.models.build import Initialization, build_model, to_device
from rebar.models.gradient_checkpointing import apply_gradient_checkpointing
from rebar.models.stochastic_depth import apply_stochastic_depth


def build_network(
    arch: str,
    *,
    num_classes: int,
    device: torch.device,
    channels_last: bool = True,
    use_blurpool: bool = False,
    pretrained: bool = False,
    zero_init_residual: bool = False,
    initialization: Initialization = "torchvision",
    bce_bias: bool = False,
    sync_batchnorm: bool = False,
    gradient_checkpointing: bool = False,
    stochastic_depth: float = 0.0,
) -> nn.Module:
    """Build a network on ``device``, not wrapped by DDP; equal seeds give equal weights on every rank.

    ``bce_bias`` initializes the last layer's bias for binary cross-entropy, unless the weights are pretrained. The
    state_dict has torchvision's names whatever is enabled. Warns of an option without effect on this architecture.
    Raises RebarError for an unknown architecture.
    """
    model = build_model(
        arch,
        num_classes=num_classes,
        use_blurpool=use_blurpool,
        pretrained=pretrained,
        zero_init_residual=zero_init_residual,
        initialization=initialization,
    )
    if bce_bias and not pretrained:
        init_bce_bias(model, num_classes)
    if sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if gradient_checkpointing and apply_gradient_checkpointing(model) == 0:
        warn(f"execution.gradient_checkpointing has no effect: {arch} has no stages of residual blocks")
    if stochastic_depth > 0 and apply_stochastic_depth(model, stochastic_depth) == 0:
        warn(f"regularization.stochastic_depth has no effect: {arch} has no residual blocks to skip")
    return to_device(model, device, channels_last=channels_last)


def init_bce_bias(model: nn.Module, num_classes: int) -> int:
    """Set the last layer's bias to -log(classes), in place, so that every class starts at a probability near 1/classes.

    Returns the number of layers found, 0 or 1. Without it, the first steps of BCE only learn to predict "absent".
    """
    heads = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == num_classes]
    if not heads or heads[-1].bias is None:
        return 0
    nn.init.constant_(heads[-1].bias, -math.log(num_classes))
    return 1
