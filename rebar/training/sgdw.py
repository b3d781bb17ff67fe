"""SGD whose weight decay is not part of the gradient.

Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, in MosaicML's form: weights
shrink by ``weight_decay`` times the schedule's share of the peak learning rate, whatever that peak is.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class SGDW(torch.optim.SGD):
    """torch's SGD; a group's ``decoupled_decay`` shrinks its weights by ``lr / peak_lr * decoupled_decay`` a step.

    A weight decay of 5e-4 here shrinks as 5e-4 / peak_lr does in SGD.
    """

    def __init__(self, params: Iterable[Any], *, peak_lr: float, **options: Any) -> None:
        groups = [{**group, "decoupled_decay": group["weight_decay"], "weight_decay": 0.0} for group in params]
        super().__init__(groups, **options)
        for group in self.param_groups:
            group["peak_lr"] = peak_lr

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Shrink, then step as SGD does; neither where a fused step finds infinite gradients."""
        # GradScaler leaves the finding to a fused optimizer, as a number on the device.
        overflow = getattr(self, "found_inf", None)
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["decoupled_decay"] == 0 or group["peak_lr"] == 0 or not params:
                continue
            share = group["lr"] / group["peak_lr"] * group["decoupled_decay"]
            torch._foreach_mul_(params, 1 - share if overflow is None else 1 - share * (1 - overflow))
        loss: float | None = super().step(closure)
        return loss
