"""Averages of the weights over the steps of a run, which are evaluated in place of the last weights.

EMA: exponential, by a half-life (Polyak and Juditsky, 1992; its use here is MosaicML's). SWA: the plain
mean of the weights at the ends of the last epochs (Izmailov et al., "Averaging weights leads to wider
optima and better generalization", UAI 2018), whose BatchNorm statistics are estimated anew.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rebar.config import option
from rebar.errors import RebarError


@dataclass(frozen=True)
class AveragingConfig:
    """Averages of the weights."""

    use_ema: bool = option(False, help="evaluate an exponential moving average of the weights")
    ema_half_life: float = option(100.0, help="EMA: steps after which weights count half", minimum=0.001)
    ema_update_every: int = option(20, help="EMA: steps between updates", minimum=1)
    use_swa: bool = option(False, help="evaluate the mean of the weights at the ends of the last epochs")
    swa_start: float = option(0.75, help="SWA: share of the epochs after which it begins", minimum=0, maximum=1)
    swa_bn_batches: int = option(50, help="SWA: training batches per process for BatchNorm's statistics", minimum=1)

    def __post_init__(self) -> None:
        if self.use_ema and self.use_swa:
            raise RebarError("averaging: choose one of use_ema and use_swa")

    def switches(self) -> Mapping[str, tuple[str, bool]]:
        """What each setting depends on to have an effect, and whether that is on."""
        ema, swa = ("use_ema", self.use_ema), ("use_swa", self.use_swa)
        return {"ema_half_life": ema, "ema_update_every": ema, "swa_start": swa, "swa_bn_batches": swa}


class WeightAverage:
    """A copy of a model that follows it. ``updates`` counts how often it has.

    - every: steps between updates; first_step: none before so many steps.
    - decay: what the average keeps of itself in an update; None: the plain mean of all updates.
    """

    def __init__(self, model: nn.Module, *, every: int, decay: float | None, first_step: int = 0) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.every, self.decay, self.first_step = every, decay, first_step
        self.updates = 0

    @property
    def needs_bn_update(self) -> bool:
        """Whether BatchNorm's statistics belong to none of the averaged weights: after a plain mean."""
        return self.decay is None

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        """Follow ``model`` after ``step`` (from 0), if it is time. The first update is a copy."""
        if step + 1 <= self.first_step or (step + 1) % self.every != 0:
            return
        self.updates += 1
        if self.updates == 1:
            weight = 1.0
        else:
            weight = 1 / self.updates if self.decay is None else 1 - self.decay
        ours, theirs = (list(m.state_dict().values()) for m in (self.model, model))
        counters = [(a, b) for a, b in zip(ours, theirs, strict=True) if not a.is_floating_point()]
        averaged = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in averaged], [b for _, b in averaged], weight)
        for counter, value in counters:
            counter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


def ema_decay(half_life: float, every: int) -> float:
    """What an average keeps of itself in an update every ``every`` steps, to halve in ``half_life`` steps."""
    return float(2 ** (-every / half_life))


def build_average(
    model: nn.Module, config: AveragingConfig, *, epochs: int, steps_per_epoch: int
) -> WeightAverage | None:
    """The average that a configuration asks for, of the model as it is."""
    if config.use_ema:
        decay = ema_decay(config.ema_half_life, config.ema_update_every)
        return WeightAverage(model, every=config.ema_update_every, decay=decay)
    if config.use_swa:
        first = min(round(config.swa_start * epochs), epochs - 1) * steps_per_epoch
        return WeightAverage(model, every=steps_per_epoch, decay=None, first_step=first)
    return None


def weights_to_evaluate(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The state_dict that a checkpoint's run evaluated: the average where there is one, else the model's."""
    average = checkpoint.get("average")
    weights: dict[str, torch.Tensor] = average["model"] if average and average["updates"] > 0 else checkpoint["model"]
    return weights
