"""The network: any torchvision classifier or a ResNet for small pictures, by default as its authors initialise it."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rebar.cli import warn
from rebar.config import knob
from rebar.errors import RebarError
from rebar.training.blurpool import apply_blurpool
from rebar.training.small_resnets import SMALL_RESNETS, SmallResNet
from rebar.training.torchvision_import import import_torchvision

Initialization = Literal["torchvision", "composer"]


@dataclass(frozen=True)
class ModelConfig:
    """Model."""

    arch: str = knob(
        "resnet18", help="torchvision classifier, e.g. resnet50; for pictures of about 32 px e.g. resnet20"
    )
    pretrained: bool = knob(False, help="start from torchvision's weights")
    zero_init_residual: bool = knob(False, help="start each residual block as the identity: its last BatchNorm at 0")
    initialization: Initialization = knob(
        "torchvision", help="of the weights; composer: MosaicML's, BatchNorm's scales uniform between 0 and 1"
    )
    num_classes: int = knob(0, help="classes of the last layer; 0 takes the dataset's", minimum=0)


def build_model(
    arch: str,
    *,
    num_classes: int,
    use_blurpool: bool = False,
    pretrained: bool = False,
    zero_init_residual: bool = False,
    initialization: Initialization = "torchvision",
) -> nn.Module:
    """A classifier in train mode on the CPU, its weights drawn from torch's global generator.

    Raises RebarError for an unknown architecture.
    """
    models = import_torchvision().models
    known = [*models.list_models(module=models), *SMALL_RESNETS]
    if arch not in known:
        near = difflib.get_close_matches(arch, known, n=3)
        raise RebarError(f"model.arch: there is no '{arch}'; near it: {', '.join(near) or 'nothing'}")
    model: nn.Module
    if pretrained:
        model = _pretrained(models, arch, num_classes)
    elif arch in SMALL_RESNETS:
        model = SmallResNet(SMALL_RESNETS[arch], num_classes)
    else:
        model = models.get_model(arch, weights=None, num_classes=num_classes)
    if initialization == "composer" and not pretrained:
        initialize_as_composer(model)
    if getattr(model, "aux_logits", False):
        raise RebarError(f"model.arch: {arch} trains with auxiliary outputs, which the loss here does not take")
    if zero_init_residual and not pretrained and start_blocks_as_identity(model) == 0:
        warn(f"model.zero_init_residual has no effect: {arch} has no residual blocks to start as the identity")
    if use_blurpool and apply_blurpool(model) == 0:
        warn(f"training.use_blurpool has no effect: {arch} has no strided convolution to blur")
    return model


def _pretrained(models: object, arch: str, num_classes: int) -> nn.Module:
    if arch in SMALL_RESNETS:
        raise RebarError(f"model.pretrained: torchvision has no weights of a {arch}")
    try:
        model: nn.Module = models.get_model(arch, weights="DEFAULT")  # type: ignore[attr-defined]
    except (OSError, RuntimeError, HTTPException) as error:  # no network, a wrong checksum, a broken connection
        raise RebarError(f"model.pretrained: torchvision's weights cannot be downloaded: {error}") from None
    head = getattr(model, "fc", None)
    if not isinstance(head, nn.Linear):
        raise RebarError(f"model.pretrained: do not know how to fit the head of {arch} to a dataset")
    if head.out_features != num_classes:
        model.fc = nn.Linear(head.in_features, num_classes)
    return model


def initialize_as_composer(model: nn.Module) -> None:
    """Draw all weights anew as MosaicML's ResNet benchmark does, in place: He et al.'s normal, U(0, 1) for scales."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight)
            nn.init.zeros_(module.bias)


def start_blocks_as_identity(model: nn.Module) -> int:
    """Set the last BatchNorm's weight of every residual block to 0, in place; returns how many.

    The signal then passes through the shortcuts alone at first, which steadies large learning rates (Goyal
    et al., "Accurate, large minibatch SGD", 2017, section 5.1).
    """
    ends = list(block_ends(model))
    for end in ends:
        nn.init.zeros_(end.weight)
    return len(ends)


def block_ends(model: nn.Module) -> Iterator[_BatchNorm]:
    """The last BatchNorm of every residual block, in order."""
    for module in model.modules():
        last = getattr(module, "bn3", None) or (getattr(module, "bn2", None) if hasattr(module, "downsample") else None)
        if isinstance(last, _BatchNorm):
            yield last


def to_device(model: nn.Module, device: torch.device, *, channels_last: bool = True) -> nn.Module:
    """The model on ``device``, its convolutions in channels_last layout unless that is not wanted."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(device).to(memory_format=layout)  # type: ignore[call-overload]


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters; 25,557,032 for ResNet-50 with 1000 classes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
