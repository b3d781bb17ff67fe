"""Weight averaging: evaluate an average of the weights over training steps instead of the last weights.

EMA is an exponential moving average given by its half-life (Polyak and Juditsky, 1992; in MosaicML's form). SWA is the
mean of the weights at the ends of the last epochs (Izmailov et al., "Averaging weights leads to wider optima and better
generalization", UAI 2018); its BatchNorm statistics are computed afterwards.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rebar.optim.options import AveragingConfig


@dataclass(frozen=True)
class AveragePhase:
    """How weights are averaged from a step on."""

    every: int
    """Steps between updates."""
    decay: float | None
    """Decay of an exponential moving average; None for the mean of all updates."""
    first_step: int = 0


class WeightAverage:
    """A running average of a model's weights and buffers.

    The first update of each phase discards the average of the phase before. ``updates`` is the number of updates in
    the current phase. torch's ``AveragedModel`` computes the same but synchronizes with the device in every update.
    """

    def __init__(self, model: nn.Module, phases: Sequence[AveragePhase]) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.phases, self.phase = phases, 0
        self.updates = 0

    @property
    def needs_bn_update(self) -> bool:
        """Whether the BatchNorm statistics must be recomputed for the averaged weights, as for SWA."""
        return self.phases[self.phase].decay is None

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        """Update the average after ``step``, counted from 0, if one is due. A phase's first update copies the model."""
        active = [index for index, phase in enumerate(self.phases) if step >= phase.first_step]
        if not active or (step + 1) % self.phases[active[-1]].every != 0:
            return
        if active[-1] != self.phase:
            self.phase, self.updates = active[-1], 0
        self.updates += 1
        decay = self.phases[self.phase].decay
        if self.updates == 1:
            weight = 1.0
        else:
            weight = 1 / self.updates if decay is None else 1 - decay
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        averages, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(averages, values, weight)
        for counter, value in (pair for pair in pairs if not pair[0].is_floating_point()):
            counter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"model": self.model.state_dict(), "updates": self.updates, "phase": self.phase}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.updates, self.phase = state["updates"], state["phase"]


def ema_decay(half_life: float, every: int) -> float:
    """Return the decay per update of a moving average that is updated every ``every`` steps."""
    return float(2 ** (-every / half_life))


def build_average(
    model: nn.Module, config: AveragingConfig, *, epochs: int, steps_per_epoch: int
) -> WeightAverage | None:
    """Return the configured average, initialized with the model's weights; None without averaging.

    With both EMA and SWA, SWA replaces the EMA at the end of the first epoch that it averages.
    """
    phases = []
    if config.use_ema:
        decay = ema_decay(config.ema_half_life, config.ema_update_every)
        phases.append(AveragePhase(config.ema_update_every, decay))
    if config.use_swa:
        first_epoch = min(round(config.swa_start * epochs), epochs - 1)
        phases.append(AveragePhase(steps_per_epoch, decay=None, first_step=first_epoch * steps_per_epoch))
    return WeightAverage(model, phases) if phases else None


def weights_to_evaluate(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the state_dict to evaluate from a checkpoint: the average's if it has been updated, else the model's."""
    average = checkpoint.get("average")
    weights: dict[str, torch.Tensor] = average["model"] if average and average["updates"] > 0 else checkpoint["model"]
    return weights


@torch.no_grad()
def update_bn(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, ...]], *, count: int, dtype: torch.dtype = torch.float32
) -> None:
    """Set the BatchNorm statistics to their mean over the first ``count`` batches of every rank, in place.

    Like ``torch.optim.swa_utils.update_bn``, which also enables dropout and stochastic depth, and supports neither
    autocast nor several ranks. ``dtype`` is that of autocast; float32: off. Every rank needs the same number of
    batches. Leaves the model in eval mode.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    for images, *_ in islice(batches, count):
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
            model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None and dist.is_available() and dist.is_initialized():
                dist.all_reduce(statistic)
                statistic.div_(dist.get_world_size())
    model.eval()
