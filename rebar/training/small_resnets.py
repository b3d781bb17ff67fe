"""ResNets for small pictures, of about 32 px: their first layers keep the resolution.

An ImageNet network shrinks a picture fourfold before its first block, which leaves 8 x 8 values of 32 px. Here the
first layer is a 3x3 convolution without stride, no pooling follows, and each stage after the first halves the
resolution. He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2, give ResNet-20 to -110;
unlike there, a shortcut that changes the shape is a 1x1 convolution with BatchNorm, as in their ImageNet networks.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from rebar.training.torchvision_import import import_torchvision


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
    """A ResNet of two-layer blocks for pictures ``[n, 3, height, width]``; its parts are named as torchvision's."""

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
