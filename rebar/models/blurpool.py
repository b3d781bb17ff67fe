"""BlurPool: blur the input of every strided convolution to prevent aliasing.

Zhang, "Making convolutional networks shift-invariant again", ICML 2019. As in ffcv-imagenet, a 3x3 binomial blur with
stride 1 precedes every convolution that has a stride above 1 and at least 16 input channels.
"""

import torch
import torch.nn.functional as F
from torch import nn

_MIN_CHANNELS = 16


class BlurPoolConv2d(nn.Conv2d):
    """A strided convolution that blurs its input. It has the same state_dict as ``nn.Conv2d``."""

    blur: torch.Tensor

    @classmethod
    def wrap(cls, conv: nn.Conv2d) -> "BlurPoolConv2d":
        """Return a blurred version of ``conv`` that shares its parameters."""
        blurred = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        blurred.weight, blurred.bias = conv.weight, conv.bias
        binomial = torch.tensor([1.0, 2.0, 1.0], dtype=conv.weight.dtype, device=conv.weight.device) / 4
        kernel = torch.outer(binomial, binomial).expand(conv.in_channels, 1, 3, 3).contiguous()
        blurred.register_buffer("blur", kernel, persistent=False)
        return blurred

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blur = self.blur.to(x.dtype)
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            # A 1x1 convolution reads only the pixels selected by its stride, so only those are blurred.
            selected = F.conv2d(x, blur, stride=self.stride, padding=1, groups=self.in_channels)
            return F.conv2d(selected, self.weight, self.bias, groups=self.groups)
        return super().forward(F.conv2d(x, blur, padding=1, groups=self.in_channels))


def apply_blurpool(module: nn.Module) -> int:
    """Blur the input of every strided convolution, in place. Return the number of convolutions."""
    replaced = 0
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            if max(child.stride) > 1 and child.in_channels >= _MIN_CHANNELS:
                setattr(module, name, BlurPoolConv2d.wrap(child))
                replaced += 1
        else:
            replaced += apply_blurpool(child)
    return replaced
