"""Progressive resizing: train on small images first and on larger ones towards the end.

Touvron et al., "Fixing the train-test resolution discrepancy", NeurIPS 2019, and Howard's fast.ai entries to DAWNBench,
2018; the ramp is ffcv-imagenet's.
"""

from dataclasses import dataclass

from rebar.config import option
from rebar.errors import RebarError


@dataclass(frozen=True)
class ResolutionConfig:
    """Training resolution."""

    min_res: int = option(160, help="resolution up to start_ramp, pixels", minimum=1)
    max_res: int = option(160, help="resolution from end_ramp on, pixels", minimum=1)
    start_ramp: int = option(0, help="epoch at which the resolution starts to grow", minimum=0)
    end_ramp: int = option(0, help="epoch at which the resolution reaches max_res", minimum=0)
    round_to: int = option(32, help="during the ramp, round to a multiple of this, pixels", minimum=1)

    def __post_init__(self) -> None:
        if self.max_res < self.min_res:
            raise RebarError(
                f"resolution: max_res {self.max_res} is below min_res {self.min_res}. Change one of them.",
                code="config-conflict",
            )
        if self.end_ramp < self.start_ramp:
            raise RebarError(
                f"resolution: end_ramp {self.end_ramp} is before start_ramp {self.start_ramp}. Change one of them.",
                code="config-conflict",
            )


def resolution_at(epoch: int, config: ResolutionConfig) -> int:
    """Return the training resolution of an epoch, counted from 0, in pixels."""
    if epoch <= config.start_ramp:
        return config.min_res
    if epoch >= config.end_ramp:
        return config.max_res
    progress = (epoch - config.start_ramp) / (config.end_ramp - config.start_ramp)
    exact = config.min_res + progress * (config.max_res - config.min_res)
    # round() rounds halves to even, like numpy.round in ffcv-imagenet
    return max(round(exact / config.round_to), 1) * config.round_to


def all_resolutions(epochs: int, config: ResolutionConfig) -> list[int]:
    """Return the training resolution of each epoch, in pixels."""
    return [resolution_at(epoch, config) for epoch in range(epochs)]
