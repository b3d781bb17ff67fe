"""A model of your own, trained by Rebar's script without changing it.

python train_imagenet.py --arch examples.own_model:build --config-file rn50_configs/g5_1gpu.yaml
python evaluate.py --checkpoint runs/g5_1gpu --data val.beton
"""

import torch
from torch import nn


class PatchNet(nn.Module):
    """A small ConvMixer-like network: patch embedding, depthwise and pointwise convolutions, global pooling."""

    def __init__(self, num_classes: int, width: int = 64, depth: int = 4, patch: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, patch, stride=patch), nn.GELU(), nn.BatchNorm2d(width))
        self.depthwise = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 5, groups=width, padding=2), nn.GELU(), nn.BatchNorm2d(width))
            for _ in range(depth)
        )
        self.pointwise = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width)) for _ in range(depth)
        )
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``[n, num_classes]`` of images ``[n, 3, height, width]``."""
        x = self.stem(x)
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x = pointwise(x + depthwise(x))
        return self.fc(x.mean(dim=(2, 3)))


def build(num_classes: int) -> nn.Module:
    """Return the model in train mode, initialized from torch's global generator."""
    return PatchNet(num_classes)
