"""Which parameters decay, which optimizer moves them, and how far at most."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from rebar.config import option
from rebar.optim.large_batch import LAMB, LARS, SGDW

OptimizerName = Literal["sgd", "sgdw", "lamb", "lars"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, besides what stands under training."""

    nesterov: bool = option(False, help="sgd, sgdw: Nesterov's momentum")
    clip_norm: float = option(0.0, help="scale gradients down to this norm over all parameters; 0: never", minimum=0)
    lamb_beta1: float = option(0.9, help="lamb: memory of the mean gradient", minimum=0, maximum=0.9999)
    lamb_beta2: float = option(0.999, help="lamb: memory of the mean squared gradient", minimum=0, maximum=0.99999)
    lamb_eps: float = option(1e-6, help="lamb: keeps the division from zero", minimum=0)
    lars_trust: float = option(0.001, help="lars: length of a step, as a share of the layer's", minimum=0)

    sam_rho: float = option(0.0, help="sharpness-aware minimisation: how far it looks; 0: not at all", minimum=0)
    sam_every: int = option(10, help="sharpness-aware minimisation: in every so many-th step", minimum=1)

    def sam_is_due(self, step: int) -> bool:
        """Whether this step of the run, from 0, is sharpness-aware."""
        return self.sam_rho > 0 and (step + 1) % self.sam_every == 0

    def switches(self, optimizer: OptimizerName) -> Mapping[str, tuple[str, bool]]:
        """What each setting depends on to have an effect, and whether that is on."""
        lamb = ("training.optimizer lamb", optimizer == "lamb")
        return {
            "nesterov": ("training.optimizer sgd or sgdw", optimizer in ("sgd", "sgdw")),
            "lamb_beta1": lamb,
            "lamb_beta2": lamb,
            "lamb_eps": lamb,
            "sam_every": ("sam_rho", self.sam_rho > 0),
            "lars_trust": ("training.optimizer lars", optimizer == "lars"),
        }


def parameter_groups(
    model: nn.Module, weight_decay: float, *, decay_downsample_bn: bool = False
) -> list[dict[str, Any]]:
    """Two optimizer groups: without weight decay, and with.

    Normalisation layers (found by type) and biases do not decay. ``decay_downsample_bn`` groups as
    ffcv-imagenet does instead, by the letters 'bn' in the name: there the BatchNorms of the downsampling
    branches and the classifier's bias decay too.
    """
    normalisation = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm))
        for parameter in module.parameters(recurse=False)
    }
    plain: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if decay_downsample_bn:
            exempt = "bn" in name
        else:
            exempt = id(parameter) in normalisation or name.rpartition(".")[2] == "bias"
        (plain if exempt else decayed).append(parameter)
    return [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def build_optimizer(
    name: OptimizerName, groups: list[dict[str, Any]], config: OptimizerConfig, *, momentum: float, peak_lr: float
) -> torch.optim.Optimizer:
    """An optimizer over parameter groups; the loop sets the learning rate at every step.

    The parameters must lie on their device already. SGD and SGDW run as one fused kernel, on a CPU too; on a GPU
    that also keeps fp16's loss scaling from waiting for the device.
    """
    if name == "lamb":
        return LAMB(groups, lr=0.0, betas=(config.lamb_beta1, config.lamb_beta2), eps=config.lamb_eps)
    if name == "lars":
        return LARS(groups, lr=0.0, momentum=momentum, trust=config.lars_trust)
    nesterov = config.nesterov and momentum > 0
    options: dict[str, Any] = {"lr": 0.0, "momentum": momentum, "nesterov": nesterov, "fused": True}
    optimizer = SGDW(groups, peak_lr=peak_lr, **options) if name == "sgdw" else torch.optim.SGD(groups, **options)
    if momentum > 0:
        _start_at_rest(optimizer)
    return optimizer


def _start_at_rest(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter a momentum of 0, from which the first step comes out as it does without one.

    torch would make it in the first step, from uninitialised memory; where fp16's gradients overflow in that very
    step, the fused kernel leaves it so.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def clip_gradients(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, max_norm: float
) -> None:
    """Scale all gradients down together where their norm is above ``max_norm``; nothing where that is 0.

    Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013. The host does not
    wait for the norm.
    """
    if max_norm > 0:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give all groups one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
