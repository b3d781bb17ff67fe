"""Progressive resizing: increase the training resolution over the epochs.

Touvron et al., "Fixing the train-test resolution discrepancy", NeurIPS 2019, and Howard's fast.ai entries to DAWNBench,
2018; the ramp is ffcv-imagenet's.
"""

from dataclasses import asdict, dataclass

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

    def at(self, epoch: int) -> int:
        """Return the training resolution of an epoch, counted from 0, in pixels."""
        return resolution_at(epoch, **asdict(self))


def resolution_at(epoch: int, *, min_res: int, max_res: int, start_ramp: int, end_ramp: int, round_to: int) -> int:
    """Interpolate linearly from ``min_res`` at epoch ``start_ramp`` to ``max_res`` at ``end_ramp``, in pixels."""
    if epoch <= start_ramp:
        return min_res
    if epoch >= end_ramp:
        return max_res
    exact = min_res + (epoch - start_ramp) / (end_ramp - start_ramp) * (max_res - min_res)
    # round() rounds halves to even, like numpy.round in ffcv-imagenet
    return max(round(exact / round_to), 1) * round_to


def all_resolutions(epochs: int, config: ResolutionConfig) -> list[int]:
    """Return the training resolution of each epoch, in pixels."""
    return [config.at(epoch) for epoch in range(epochs)]
