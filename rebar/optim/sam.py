"""Sharpness-aware minimisation: the gradient is taken where the loss is worst close by.

Foret et al., "Sharpness-aware minimization for efficiently improving generalization", ICLR 2021. Only every
so many steps, as Composer does, it costs little.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def perturbed_weights(parameters: Iterable[nn.Parameter], rho: float) -> Iterator[None]:
    """Meanwhile the parameters are moved by ``rho`` along their gradient, whose scale does not matter.

    A gradient that overflowed moves nothing. The host does not wait for the norm.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
    with torch.no_grad():
        before = [parameter.clone() for parameter in moved]
        norm = nn.utils.get_total_norm(gradients)
        factor = torch.where(norm.isfinite() & (norm > 0), rho / norm, torch.zeros_like(norm))
        for parameter, gradient in zip(moved, gradients, strict=True):
            parameter.add_(torch.where(factor > 0, gradient * factor, 0))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, before, strict=True):
                parameter.copy_(value)
