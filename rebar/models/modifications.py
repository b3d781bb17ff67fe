"""Modifications of a network, in place: BlurPool, stochastic depth, gradient checkpointing.

The state_dict does not change. The functions return how many layers or blocks they modified.

- BlurPool blurs the input of every strided convolution to prevent aliasing (Zhang, "Making convolutional networks
  shift-invariant again", ICML 2019). As in ffcv-imagenet, a 3x3 binomial blur with stride 1 precedes every convolution
  that has a stride above 1 and at least 16 input channels.
- Stochastic depth: during training, a random subset of the samples skips each residual block (Huang et al., "Deep
  networks with stochastic depth", ECCV 2016). The drop rate grows linearly with depth. The samples that do not skip
  are scaled by 1 / (1 - rate) to keep the mean.
- Gradient checkpointing recomputes the activations of each residual block in the backward pass (Chen et al.,
  "Training deep nets with sublinear memory cost", 2016). It halves the activation memory for about a third more
  computation. Losses, gradients and BatchNorm statistics do not change.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from rebar.models.resnets import last_batchnorms

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


def drop_samples(x: torch.Tensor, rate: float) -> torch.Tensor:
    """Set each sample of ``[n, ...]`` to 0 with probability ``rate``, and scale the others by 1 / (1 - rate)."""
    kept = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device) >= rate
    return x * (kept / (1 - rate)).to(x.dtype)


class _DropSamples:
    """A forward hook for a block's last BatchNorm, whose output is added to the shortcut."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return drop_samples(output, self.rate) if module.training else output


def apply_stochastic_depth(model: nn.Module, rate: float) -> int:
    """Enable stochastic depth, in place; the last block has drop rate ``rate``. Return the number of affected blocks.

    The first block is never dropped. The state_dict does not change.
    """
    norms = list(last_batchnorms(model))
    for depth, norm in enumerate(norms):
        if depth > 0:
            norm.register_forward_hook(_DropSamples(rate * depth / (len(norms) - 1)))
    return max(len(norms) - 1, 0)


class CheckpointedSequential(nn.Sequential):
    """An ``nn.Sequential`` that stores only the input of each block. It has the same state_dict."""

    def forward(self, x: Any) -> Any:
        if not self.training:
            return super().forward(x)
        for block in self:

            def contexts(block: nn.Module = block) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
                return nullcontext(), _frozen_running_stats(block)

            x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        return x


@contextmanager
def _frozen_running_stats(block: nn.Module) -> Iterator[None]:
    """Prevent the recomputed forward pass from updating the running statistics a second time."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()  # discarded afterwards
    try:
        yield
    finally:
        for norm, momentum, counter in kept:
            norm.momentum, norm.num_batches_tracked = momentum, counter


def apply_gradient_checkpointing(model: nn.Module) -> int:
    """Checkpoint every block of the model's stages, in place. Return the number of blocks.

    A stage is a direct child of type ``nn.Sequential`` whose modules all have submodules, such as ``layer1`` to
    ``layer4`` of a ResNet.
    """
    blocks = 0
    for name, stage in model.named_children():
        if isinstance(stage, nn.Sequential) and len(stage) > 0 and all(list(block.children()) for block in stage):
            setattr(model, name, CheckpointedSequential(*stage))
            blocks += len(stage)
    return blocks
