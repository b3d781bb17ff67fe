"""Import torchvision, also where its compiled operators do not fit the installed torch.

A torchvision built for CUDA beside a CPU-only torch cannot load its operators, and then the import
itself fails, because it describes two of them to torch before looking whether they exist. The models
need none of them. Declaring the two lets the import pass; where torch and torchvision are of one build
nothing is done.

ResNets for small images, of about 32 px: their first layers keep the resolution.

An ImageNet network shrinks an image fourfold before its first block, which leaves 8 x 8 values of 32 px. Here the
first layer is a 3x3 convolution without stride, no pooling follows, and each stage after the first halves the
resolution. He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2, give ResNet-20 to -110;
unlike there, a shortcut that changes the shape is a 1x1 convolution with BatchNorm, as in their ImageNet networks.

The network: any torchvision classifier or a ResNet for small images, by default as its authors initialise it.
"""

import difflib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from types import ModuleType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rebar.cli import warn
from rebar.config import option
from rebar.errors import RebarError
from rebar.models.blurpool import apply_blurpool

_DECLARATIONS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[torch.library.Library] = []  # a declaration lives as long as its Library


def import_torchvision() -> ModuleType:
    """The torchvision module, with ``torchvision.models`` loaded."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        _kept.append(library)
        for declaration in _DECLARATIONS:
            library.define(declaration)
        import torchvision
    return torchvision


@dataclass(frozen=True)
class Shape:
    """``widths`` are the channels of each stage, ``blocks`` the number of residual blocks in each."""

    widths: tuple[int, ...]
    blocks: int


SMALL_RESNETS = {
    "resnet20": Shape((16, 32, 64), 3),
    "resnet32": Shape((16, 32, 64), 5),
    "resnet44": Shape((16, 32, 64), 7),
    "resnet56": Shape((16, 32, 64), 9),
    "resnet110": Shape((16, 32, 64), 18),
    "resnet10_small": Shape((32, 64, 128, 256), 1),
    "resnet18_small": Shape((64, 128, 256, 512), 2),
}


class SmallResNet(nn.Module):
    """A ResNet of two-layer blocks for images ``[n, 3, height, width]``; its parts are named as torchvision's."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        channels = shape.widths[0]
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self._stages = [f"layer{number}" for number in range(1, len(shape.widths) + 1)]
        for name, width in zip(self._stages, shape.widths, strict=True):
            stride = 1 if name == "layer1" else 2
            blocks = [_block(channels, width, stride), *(_block(width, width) for _ in range(shape.blocks - 1))]
            self.add_module(name, nn.Sequential(*blocks))
            channels = width
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for name in self._stages:
            x = self.get_submodule(name)(x)
        return self.fc(x.mean(dim=(2, 3)))


def _block(channels: int, width: int, stride: int = 1) -> nn.Module:
    shortcut = None
    if stride != 1 or channels != width:
        shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    block: nn.Module = import_torchvision().models.resnet.BasicBlock(channels, width, stride, shortcut)
    return block


Initialization = Literal["torchvision", "composer"]


@dataclass(frozen=True)
class ModelConfig:
    """Model."""

    arch: str = option(
        "resnet18", help="torchvision classifier, e.g. resnet50; for images of about 32 px e.g. resnet20"
    )
    pretrained: bool = option(False, help="start from torchvision's weights")
    zero_init_residual: bool = option(False, help="start each residual block as the identity: its last BatchNorm at 0")
    initialization: Initialization = option(
        "torchvision", help="of the weights; composer: MosaicML's, BatchNorm's scales uniform between 0 and 1"
    )
    num_classes: int = option(0, help="classes of the last layer; 0 takes the dataset's", minimum=0)


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
