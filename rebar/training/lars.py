"""LARS: SGD whose steps are as long as a layer's weights, for batches of 8,000 and more.

You, Gitman and Ginsburg, "Large batch training of convolutional networks", 2017. As in MLPerf's reference
what does not decay takes plain steps.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class LARS(torch.optim.SGD):
    """torch's SGD on gradients rescaled by ``trust`` times the norm of the weights over that of the gradient."""

    def __init__(self, params: Iterable[Any], *, trust: float = 0.001, **options: Any) -> None:
        groups = [{**group, "adapted_decay": group["weight_decay"], "weight_decay": 0.0} for group in params]
        super().__init__(groups, **options)
        for group in self.param_groups:
            group["trust"] = trust

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Rescale the gradients in place (weight decay included), then step as SGD does."""
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["adapted_decay"] == 0 or not params:
                continue
            grads = [parameter.grad for parameter in params if parameter.grad is not None]
            # trust x |w| / (|g| + decay x |w|), as the paper has it
            lengths = torch.stack(list(torch._foreach_norm(params)))
            slopes = torch.stack(list(torch._foreach_norm(grads)))
            ratios = group["trust"] * lengths / (slopes + group["adapted_decay"] * lengths)
            ratios = torch.where((lengths > 0) & (slopes > 0), ratios, 1)
            torch._foreach_add_(grads, params, alpha=group["adapted_decay"])
            torch._foreach_mul_(grads, list(ratios.unbind()))
        loss: float | None = super().step(closure)
        return loss
