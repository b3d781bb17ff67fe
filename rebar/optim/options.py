"""The options of optimizers and weight averaging. Imports no torch, so that the command line is read at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rebar.config import option

OptimizerName = Literal["sgd", "sgdw", "lamb", "lars"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer options in addition to those under training."""

    nesterov: bool = option(False, help="sgd, sgdw: Nesterov momentum")
    clip_norm: float = option(0.0, help="clip gradients to this norm over all parameters; 0: off", minimum=0)
    lamb_beta1: float = option(0.9, help="lamb: decay rate of the mean gradient", minimum=0, maximum=0.9999)
    lamb_beta2: float = option(0.999, help="lamb: decay rate of the mean squared gradient", minimum=0, maximum=0.99999)
    lamb_eps: float = option(1e-6, help="lamb: added to the denominator", minimum=0)
    lars_trust: float = option(0.001, help="lars: trust coefficient", minimum=0)

    sam_rho: float = option(0.0, help="sharpness-aware minimization: size of the perturbation; 0: off", minimum=0)
    sam_every: int = option(10, help="sharpness-aware minimization: steps between SAM steps", minimum=1)

    def sam_is_due(self, step: int) -> bool:
        """Return whether a step, counted from 0, is a SAM step."""
        return self.sam_rho > 0 and (step + 1) % self.sam_every == 0

    def conditions(self, optimizer: OptimizerName) -> Mapping[str, tuple[str, bool]]:
        """Return, by option, the condition under which it has an effect, and whether that condition is met."""
        lamb = ("training.optimizer lamb", optimizer == "lamb")
        return {
            "nesterov": ("training.optimizer sgd or sgdw", optimizer in ("sgd", "sgdw")),
            "lamb_beta1": lamb,
            "lamb_beta2": lamb,
            "lamb_eps": lamb,
            "sam_every": ("sam_rho", self.sam_rho > 0),
            "lars_trust": ("training.optimizer lars", optimizer == "lars"),
        }


@dataclass(frozen=True)
class AveragingConfig:
    """Weight averaging."""

    use_ema: bool = option(False, help="evaluate an exponential moving average of the weights")
    ema_half_life: float = option(100.0, help="EMA: half-life of a step's weights, in steps", minimum=0.001, unit="ba")
    ema_update_every: int = option(20, help="EMA: steps between updates", minimum=1, unit="ba")
    use_swa: bool = option(
        False, help="evaluate the mean of the weights at the ends of the last epochs; until it starts, that of use_ema"
    )
    swa_start: float = option(
        0.75, help="SWA: fraction of the epochs after which it starts", minimum=0, maximum=1, unit="dur"
    )
    swa_bn_batches: int = option(50, help="SWA: training batches per rank for BatchNorm statistics", minimum=1)

    def conditions(self) -> Mapping[str, tuple[str, bool]]:
        """Return, by option, the condition under which it has an effect, and whether that condition is met."""
        ema, swa = ("use_ema", self.use_ema), ("use_swa", self.use_swa)
        return {"ema_half_life": ema, "ema_update_every": ema, "swa_start": swa, "swa_bn_batches": swa}
