"""SGD whose weight decay is not part of the gradient.

Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, in MosaicML's form: weights
shrink by ``weight_decay`` times the schedule's share of the peak learning rate, whatever that peak is.

LAMB: Adam whose steps are as long as a layer's weights, for very large batches.

You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", ICLR 2020, in the
form of NVIDIA and timm: bias corrected, and only what decays is adapted. Clip gradients to a norm of 1
with it, as those do.

LARS: SGD whose steps are as long as a layer's weights, for batches of 8,000 and more.

You, Gitman and Ginsburg, "Large batch training of convolutional networks", 2017. As in MLPerf's reference
what does not decay takes plain steps.
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


class LAMB(torch.optim.Optimizer):
    """LAMB over parameter groups, with torch's foreach kernels."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[torch.Tensor], group: dict[str, Any]) -> None:
        (beta1, beta2), steps = group["betas"], self._count(params)
        grads = [parameter.grad for parameter in params if parameter.grad is not None]
        means, squares = (self._moments(params, name) for name in ("mean", "square"))
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        scales = torch._foreach_sqrt(squares)
        torch._foreach_div_(scales, (1 - beta2**steps) ** 0.5)
        torch._foreach_add_(scales, group["eps"])
        updates = torch._foreach_div(torch._foreach_div(means, 1 - beta1**steps), scales)
        if group["weight_decay"] > 0:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
            torch._foreach_mul_(updates, trust_ratios(params, updates))
        torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _count(self, params: list[torch.Tensor]) -> int:
        """How many updates these parameters have had, with this one."""
        for parameter in params:
            self.state[parameter]["steps"] = self.state[parameter].get("steps", 0) + 1
        return max(self.state[parameter]["steps"] for parameter in params)

    def _moments(self, params: list[torch.Tensor], name: str) -> list[torch.Tensor]:
        for parameter in params:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return [self.state[parameter][name] for parameter in params]


def trust_ratios(
    params: list[torch.Tensor], updates: list[torch.Tensor] | tuple[torch.Tensor, ...]
) -> list[torch.Tensor]:
    """The norm of each parameter over that of its update; 1 where either is 0."""
    lengths = torch.stack(list(torch._foreach_norm(params)))
    steps = torch.stack(list(torch._foreach_norm(updates)))
    ratios = torch.where((lengths > 0) & (steps > 0), lengths / steps, 1)
    return list(ratios.unbind())


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
