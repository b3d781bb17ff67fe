"""Stochastic depth: in training, some samples skip some residual blocks.

Huang et al., "Deep networks with stochastic depth", ECCV 2016: the share of samples that skip a block
grows linearly with its depth, and what remains is scaled up so that its mean stays.
"""

from typing import Any

import torch
from torch import nn

from rebar.models.resnets import block_ends


def drop_samples(x: torch.Tensor, rate: float) -> torch.Tensor:
    """Set a random share ``rate`` of the samples ``[n, ...]`` to 0, and scale the others by 1 / (1 - rate)."""
    kept = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device) >= rate
    return x * (kept / (1 - rate)).to(x.dtype)


class _Dropper:
    """A forward hook behind a block's last normalisation, where its branch ends."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return drop_samples(output, self.rate) if module.training else output


def apply_stochastic_depth(model: nn.Module, rate: float) -> int:
    """Let samples skip residual blocks, the last with probability ``rate``; returns how many blocks may be skipped.

    The first block is never skipped. The state_dict stays as it is.
    """
    ends = list(block_ends(model))
    for depth, end in enumerate(ends):
        if depth > 0:
            end.register_forward_hook(_Dropper(rate * depth / (len(ends) - 1)))
    return max(len(ends) - 1, 0)
