"""ResNets for images of about 32 px, and weight initializations for all ResNets.

An ImageNet ResNet downsamples fourfold before its first block, which leaves 8 x 8 of 32 x 32 px. Here the stem is one
3x3 convolution with stride 1 and no pooling. Each stage after the first halves the resolution. ``resnet20`` to
``resnet110`` are those of He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2, except
that a shortcut that changes the shape is a 1x1 convolution with BatchNorm, as in the ImageNet ResNets.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class SmallResNetSpec:
    """``widths``: channels of each stage. ``blocks``: residual blocks per stage."""

    widths: tuple[int, ...]
    blocks: int


SMALL_RESNETS = {
    "resnet20": SmallResNetSpec((16, 32, 64), 3),
    "resnet32": SmallResNetSpec((16, 32, 64), 5),
    "resnet44": SmallResNetSpec((16, 32, 64), 7),
    "resnet56": SmallResNetSpec((16, 32, 64), 9),
    "resnet110": SmallResNetSpec((16, 32, 64), 18),
    "resnet10_small": SmallResNetSpec((32, 64, 128, 256), 1),
    "resnet18_small": SmallResNetSpec((64, 128, 256, 512), 2),
}


class SmallResNet(nn.Module):
    """A ResNet of two-layer blocks for images ``[n, 3, height, width]``. Parameters are named as in torchvision."""

    def __init__(self, spec: SmallResNetSpec, num_classes: int) -> None:
        super().__init__()
        channels = spec.widths[0]
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self._stages = [f"layer{number}" for number in range(1, len(spec.widths) + 1)]
        for name, width in zip(self._stages, spec.widths, strict=True):
            stride = 1 if name == "layer1" else 2
            blocks = [
                _basic_block(channels, width, stride),
                *(_basic_block(width, width) for _ in range(spec.blocks - 1)),
            ]
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


def _basic_block(channels: int, width: int, stride: int = 1) -> nn.Module:
    shortcut = None
    if stride != 1 or channels != width:
        shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    from torchvision.models.resnet import BasicBlock

    block: nn.Module = BasicBlock(channels, width, stride, shortcut)
    return block


def last_batchnorms(model: nn.Module) -> Iterator[_BatchNorm]:
    """Yield the last BatchNorm of every residual block, in order of depth."""
    for module in model.modules():
        last = getattr(module, "bn3", None) or (getattr(module, "bn2", None) if hasattr(module, "downsample") else None)
        if isinstance(last, _BatchNorm):
            yield last


def zero_init_residual(model: nn.Module) -> int:
    """Set the weight of the last BatchNorm of every residual block to 0, in place. Return the number of blocks.

    Every block starts as the identity, which stabilizes training with a large learning rate (Goyal et al., "Accurate,
    large minibatch SGD", 2017, section 5.1).
    """
    norms = list(last_batchnorms(model))
    for norm in norms:
        nn.init.zeros_(norm.weight)
    return len(norms)


def init_as_composer(model: nn.Module) -> None:
    """Initialize the weights like MosaicML Composer's ResNet benchmark, in place.

    Convolutions and linear layers: Kaiming normal. BatchNorm weights: uniform in [0, 1); biases: 0.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight)
            nn.init.zeros_(module.bias)
