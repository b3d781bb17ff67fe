"""Build the network of a run: a torchvision classifier or a ResNet for small images."""

import difflib
import functools
import importlib
import math
import sys
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from rebar.cli import warn
from rebar.errors import RebarError
from rebar.models import resnets
from rebar.models.modifications import apply_blurpool, apply_gradient_checkpointing, apply_stochastic_depth
from rebar.models.options import Initialization
from rebar.models.resnets import SMALL_RESNETS, SmallResNet

ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {  # called with the number of classes
    **{name: functools.partial(SmallResNet, shape) for name, shape in SMALL_RESNETS.items()},
}
"""Architectures in addition to torchvision's. Register new ones here."""


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
    """Build a network on ``device``, not wrapped by DDP; the same seed gives the same weights on every rank.

    ``bce_bias`` initializes the last layer's bias for binary cross-entropy, unless the weights are pretrained. The
    state_dict always has torchvision's names. Warns about options without effect on this architecture.
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


def build_model(
    arch: str,
    *,
    num_classes: int,
    use_blurpool: bool = False,
    pretrained: bool = False,
    zero_init_residual: bool = False,
    initialization: Initialization = "torchvision",
) -> nn.Module:
    """Return a classifier in train mode on the CPU, initialized from torch's global generator.

    Raises RebarError for an unknown or unsupported architecture, or if pretrained weights are not available.
    """
    from torchvision import models

    known = [*models.list_models(module=models), *ARCHITECTURES]
    build_own = _import_builder(arch) if ":" in arch else ARCHITECTURES.get(arch)
    if arch not in known and build_own is None:
        similar = difflib.get_close_matches(arch, known, n=3)
        fix = f"Did you mean {' or '.join(similar)}?" if similar else "Use the name of a torchvision classifier."
        raise RebarError(f"model.arch: '{arch}' is unknown. {fix}", code="model-unknown-arch")
    model: nn.Module
    if pretrained:
        model = _load_pretrained(models, arch, num_classes)
    elif build_own is not None:
        model = build_own(num_classes)
    else:
        model = models.get_model(arch, weights=None, num_classes=num_classes)
    if initialization == "composer" and not pretrained:
        resnets.init_as_composer(model)
    if getattr(model, "aux_logits", False):
        raise RebarError(
            f"model.arch: {arch} has auxiliary classifiers, which are not supported. Choose another architecture.",
            code="model-unsupported-arch",
        )
    if zero_init_residual and not pretrained and resnets.zero_init_residual(model) == 0:
        warn(f"model.zero_init_residual has no effect: {arch} has no residual blocks")
    if use_blurpool and apply_blurpool(model) == 0:
        warn(f"training.use_blurpool has no effect: {arch} has no strided convolutions to blur")
    return model


def _import_builder(arch: str) -> Callable[[int], nn.Module]:
    """Return the callable that ``module:callable`` names. The module may be in the working folder."""
    name, _, attribute = arch.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        builder = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise RebarError(
            f"model.arch: {arch} cannot be imported: {error}. Pass module:callable, of a module in {folder} or on "
            "PYTHONPATH; it is called with the number of classes.",
            code="model-unknown-arch",
        ) from None
    if not callable(builder):
        raise RebarError(f"model.arch: {arch} is not callable. Pass a function or class.", code="model-unknown-arch")
    own: Callable[[int], nn.Module] = builder
    return own


def _load_pretrained(models: ModuleType, arch: str, num_classes: int) -> nn.Module:
    if ":" in arch or arch in ARCHITECTURES:
        raise RebarError(
            f"model.pretrained: torchvision has no weights for {arch}. Choose an ImageNet architecture.",
            code="model-no-pretrained-weights",
        )
    try:
        model: nn.Module = models.get_model(arch, weights="DEFAULT")
    except (OSError, RuntimeError, HTTPException) as error:  # no network, wrong checksum, connection reset
        raise RebarError(
            f"model.pretrained: download of torchvision's {arch} weights failed: {error}. Check the network, or copy "
            "the file into torch's cache (~/.cache/torch/hub/checkpoints).",
            code="model-download-failed",
        ) from None
    classifier = getattr(model, "fc", None)
    if not isinstance(classifier, nn.Linear):
        raise RebarError(
            f"model.pretrained: the classifier of {arch} cannot be resized, because it is not a linear layer named fc. "
            "Choose a ResNet, or train from scratch.",
            code="model-unsupported-arch",
        )
    if classifier.out_features != num_classes:
        model.fc = nn.Linear(classifier.in_features, num_classes)
    return model


def init_bce_bias(model: nn.Module, num_classes: int) -> int:
    """Set the last layer's bias to -log(classes), in place, so that each class starts with probability 1/classes.

    Returns the number of layers found, 0 or 1. Without it, the first steps of BCE only learn to predict "absent".
    """
    heads = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == num_classes]
    if not heads or heads[-1].bias is None:
        return 0
    nn.init.constant_(heads[-1].bias, -math.log(num_classes))
    return 1


def to_device(model: nn.Module, device: torch.device, *, channels_last: bool = True) -> nn.Module:
    """Move a model to ``device``, in channels_last or contiguous memory format."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(device).to(memory_format=memory_format)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters. ResNet-50 with 1000 classes has 25,557,032."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
