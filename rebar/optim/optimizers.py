"""Optimizers (SGD, SGDW, LAMB, LARS), their parameter groups, gradient clipping and sharpness-aware minimization."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from rebar.optim.options import OptimizerConfig, OptimizerName


def parameter_groups(
    model: nn.Module, weight_decay: float, *, decay_downsample_bn: bool = False
) -> list[dict[str, Any]]:
    """Return two parameter groups: one without weight decay, one with.

    Biases and normalization layers have no weight decay. ``decay_downsample_bn`` exempts parameters with "bn" in their
    name instead, like ffcv-imagenet, so the BatchNorms of downsampling shortcuts and the classifier's bias decay.
    """
    in_norm_layer = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm))
        for parameter in module.parameters(recurse=False)
    }
    no_decay: list[nn.Parameter] = []
    decay: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if decay_downsample_bn:
            exempt = "bn" in name
        else:
            exempt = id(parameter) in in_norm_layer or name.rpartition(".")[2] == "bias"
        (no_decay if exempt else decay).append(parameter)
    return [{"params": no_decay, "weight_decay": 0.0}, {"params": decay, "weight_decay": weight_decay}]


def build_optimizer(
    name: OptimizerName, groups: list[dict[str, Any]], config: OptimizerConfig, *, momentum: float, peak_lr: float
) -> torch.optim.Optimizer:
    """Return an optimizer with a learning rate of 0; the training loop sets the rate at every step.

    The parameters must already be on their device. SGD and SGDW use torch's fused kernels, even on the CPU. On a GPU,
    a fused optimizer checks for fp16 gradient overflow on the device, without a CPU-GPU sync.
    """
    if name == "lamb":
        return LAMB(groups, lr=0.0, betas=(config.lamb_beta1, config.lamb_beta2), eps=config.lamb_eps)
    if name == "lars":
        return LARS(groups, lr=0.0, momentum=momentum, trust=config.lars_trust)
    nesterov = config.nesterov and momentum > 0
    options: dict[str, Any] = {"lr": 0.0, "momentum": momentum, "nesterov": nesterov, "fused": True}
    optimizer = SGDW(groups, peak_lr=peak_lr, **options) if name == "sgdw" else torch.optim.SGD(groups, **options)
    if momentum > 0:
        _zero_momentum_buffers(optimizer)
    return optimizer


def _zero_momentum_buffers(optimizer: torch.optim.Optimizer) -> None:
    """Allocate zeroed momentum buffers. This does not change the first step.

    torch allocates them uninitialized in the first step, and the fused kernel does not fill them if the fp16 gradients
    of that step overflow.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_gradients(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, max_norm: float
) -> None:
    """Unscale the gradients and clip their total norm to ``max_norm``; 0 disables clipping.

    Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013. Does not synchronize with
    the device.
    """
    if max_norm > 0:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)


@contextmanager
def perturbed_weights(parameters: Iterable[nn.Parameter], rho: float) -> Iterator[None]:
    """Move the parameters by ``rho`` along the normalized gradient within the context.

    Sharpness-aware minimization: Foret et al., "Sharpness-aware minimization for efficiently improving
    generalization", ICLR 2021. The gradients may be scaled. If they overflow, the parameters do not move. Does not
    synchronize with the device.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
    with torch.no_grad():
        originals = [parameter.clone() for parameter in moved]
        norm = nn.utils.get_total_norm(gradients)
        factor = torch.where(norm.isfinite() & (norm > 0), rho / norm, torch.zeros_like(norm))
        for parameter, gradient in zip(moved, gradients, strict=True):
            parameter.add_(torch.where(factor > 0, gradient * factor, 0))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, original in zip(moved, originals, strict=True):
                parameter.copy_(original)


class SGDW(torch.optim.SGD):
    """SGD with decoupled weight decay: each step multiplies the weights by ``1 - lr / peak_lr * weight_decay``.

    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, in MosaicML's form, in which the decay
    does not depend on the peak learning rate. A weight decay of 5e-4 is equivalent to 5e-4 / peak_lr in SGD.
    """

    def __init__(self, params: Iterable[Any], *, peak_lr: float, **options: Any) -> None:
        groups = [{**group, "decoupled_decay": group["weight_decay"], "weight_decay": 0.0} for group in params]
        super().__init__(groups, **options)
        for group in self.param_groups:
            group["peak_lr"] = peak_lr

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Decay the weights, then take an SGD step. A fused optimizer skips both if the gradients overflowed."""
        overflow = getattr(self, "found_inf", None)  # GradScaler passes 0 or 1 to fused optimizers, as a device tensor
        for group in self.param_groups:
            params, _ = _with_gradients(group)
            if group["decoupled_decay"] == 0 or group["peak_lr"] == 0 or not params:
                continue
            decay = group["lr"] / group["peak_lr"] * group["decoupled_decay"]
            torch._foreach_mul_(params, 1 - decay if overflow is None else 1 - decay * (1 - overflow))
        loss: float | None = super().step(closure)
        return loss


class LAMB(torch.optim.Optimizer):
    """Adam with layer-wise adaptive step sizes, for very large batches.

    You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", ICLR 2020, as implemented by
    NVIDIA and timm: with bias correction, and with a trust ratio only in groups with weight decay. Use it with
    gradients clipped to a norm of 1, as they do.
    """

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
        """Update the parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params, gradients = _with_gradients(group)
            if params:
                self._update(params, gradients, group)
        return loss

    def _update(self, params: list[torch.Tensor], gradients: list[torch.Tensor], group: dict[str, Any]) -> None:
        (beta1, beta2), steps = group["betas"], self._count_step(params)
        means, squares = (self._moments(params, name) for name in ("mean", "square"))
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_div_(denominators, (1 - beta2**steps) ** 0.5)
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(torch._foreach_div(means, 1 - beta1**steps), denominators)
        if group["weight_decay"] > 0:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
            weight_norms, update_norms = _norms(params), _norms(updates)
            torch._foreach_mul_(updates, _ratios(weight_norms, update_norms, weight_norms / update_norms))
        torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _count_step(self, params: list[torch.Tensor]) -> int:
        """Return the number of updates of these parameters, including this one."""
        for parameter in params:
            self.state[parameter]["steps"] = self.state[parameter].get("steps", 0) + 1
        return max(self.state[parameter]["steps"] for parameter in params)

    def _moments(self, params: list[torch.Tensor], name: str) -> list[torch.Tensor]:
        for parameter in params:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return [self.state[parameter][name] for parameter in params]


class LARS(torch.optim.SGD):
    """SGD with layer-wise adaptive learning rates, for batches of 8,000 images and more.

    You, Gitman and Ginsburg, "Large batch training of convolutional networks", 2017. As in the MLPerf reference, groups
    without weight decay take plain SGD steps.
    """

    def __init__(self, params: Iterable[Any], *, trust: float = 0.001, **options: Any) -> None:
        groups = [{**group, "adapted_decay": group["weight_decay"], "weight_decay": 0.0} for group in params]
        super().__init__(groups, **options)
        for group in self.param_groups:
            group["trust"] = trust

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Add weight decay to the gradients and scale them by the trust ratio, in place; then take an SGD step."""
        for group in self.param_groups:
            decay, (params, gradients) = group["adapted_decay"], _with_gradients(group)
            if decay == 0 or not params:
                continue
            weight_norms, gradient_norms = _norms(params), _norms(gradients)
            ratios = group["trust"] * weight_norms / (gradient_norms + decay * weight_norms)
            torch._foreach_add_(gradients, params, alpha=decay)
            torch._foreach_mul_(gradients, _ratios(weight_norms, gradient_norms, ratios))
        loss: float | None = super().step(closure)
        return loss


def _with_gradients(group: dict[str, Any]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    params = [parameter for parameter in group["params"] if parameter.grad is not None]
    return params, [parameter.grad for parameter in params]


def _norms(tensors: list[torch.Tensor] | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.stack(list(torch._foreach_norm(tensors)))


def _ratios(weight_norms: torch.Tensor, update_norms: torch.Tensor, ratios: torch.Tensor) -> list[torch.Tensor]:
    """Return the trust ratios as a list of scalars: 1 where either norm is 0."""
    return list(torch.where((weight_norms > 0) & (update_norms > 0), ratios, 1).unbind())
