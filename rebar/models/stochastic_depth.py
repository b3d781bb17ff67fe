"""Stochastic depth: during training, a random subset of the samples skips each residual block.

Huang et al., "Deep networks with stochastic depth", ECCV 2016. The drop rate grows linearly with depth. The samples
that do not skip are scaled by 1 / (1 - rate) to keep the mean.
"""

from typing import Any

import torch
from torch import nn

from rebar.models.resnets import last_batchnorms


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
