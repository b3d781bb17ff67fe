"""Learning rate range test: raise the rate exponentially, watch the loss.

Smith, "Cyclical learning rates for training neural networks", WACV 2017; the smoothing and the rule of
the steepest descent as fast.ai made them known. The curve is a hint, not a proof.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from rebar.storage.atomic_write import atomic_write
from rebar.training.trial import Trial

LOWEST, HIGHEST = 1e-5, 10.0
_SMOOTHING = 0.9
_MEMORY = 10  # losses that the average is made of, about
_BLOWN_UP = 4.0  # times the smallest smoothed loss: then the test is over
_MOVED = 0.02  # share of the first loss that it must fall by to mean anything


@dataclass(frozen=True)
class LrFindings:
    """Rates, smoothed losses, and what they suggest; the suggestions are None where the loss never moved."""

    rates: list[float]
    losses: list[float]
    steepest: float | None
    """Where the loss falls fastest on the logarithmic scale."""
    minimum: float | None
    """Where it is lowest: too high to train with."""

    def advice(self) -> str:
        """In words; the steps are shares of the steepest descent's rate."""
        if self.steepest is None or self.minimum is None:
            return (
                f"the loss never moved between {self.rates[0]:.1g} and {self.rates[-1]:.1g}: look at data and labels, "
                "give the test more steps (--find-lr-steps), or start from weights that are not trained to the end"
            )
        shares = {"conservative": 0.1, "moderate": 0.5, "aggressive": 1.0}
        rates = ", ".join(f"{name} ({100 * share:.0f} %) {share * self.steepest:.3g}" for name, share in shares.items())
        return (
            f"steepest descent at {self.steepest:.3g}, lowest loss at {self.minimum:.3g}\n"
            f"try --lr: {rates} (for this global batch, with warm-up)"
        )


def exponential_rates(steps: int, lowest: float = LOWEST, highest: float = HIGHEST) -> list[float]:
    """From lowest to highest in equal factors."""
    return [lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps)]


def smoothed(losses: Sequence[float], weight: float = _SMOOTHING) -> list[float]:
    """Exponential moving average, corrected for its start."""
    average, result = 0.0, []
    for count, loss in enumerate(losses, start=1):
        average = weight * average + (1 - weight) * loss
        result.append(average / (1 - weight**count))
    return result


def analyse(rates: Sequence[float], losses: Sequence[float]) -> LrFindings:
    """Steepest descent and minimum of raw losses at rates; what follows a blow-up is left out."""
    smooth = smoothed(losses)
    lowest = min(range(len(smooth)), key=smooth.__getitem__)
    if lowest < 2 or smooth[0] - smooth[lowest] < _MOVED * abs(smooth[0]):
        return LrFindings(list(rates[: len(smooth)]), smooth, None, None)
    first = 1 + min(max(_MEMORY, len(smooth) // 10), lowest - 2)  # before, the average is of too few to be smooth
    window = max(1, len(smooth) // 12)

    def slope(i: int) -> float:
        """Of the line through the losses around ``i``: one step's noise is no descent."""
        around = range(max(0, i - window), min(lowest, i + window) + 1)
        return statistics.linear_regression([math.log(rates[j]) for j in around], [smooth[j] for j in around]).slope

    steepest = min(range(first, max(first + 1, lowest - window + 1)), key=slope)
    return LrFindings(list(rates[: len(smooth)]), smooth, rates[steepest], rates[lowest])


def find_lr(trial: Trial, resolution: int, *, steps: int) -> LrFindings:
    """Run the test on real batches; afterwards the model is as it was. Every process must take part."""
    rates, losses = exponential_rates(steps), list[float]()
    with trial.undone():
        for loss in map(torch.Tensor.item, trial.losses(rates, resolution)):
            if not math.isfinite(loss):
                break
            losses.append(loss)
            smooth = smoothed(losses)
            if len(losses) > 10 and smooth[-1] > _BLOWN_UP * min(smooth):
                break
    return analyse(rates, losses)


def plot_findings(findings: LrFindings, folder: Path) -> Path:
    """Write ``lr_range_test.png`` and ``.json`` into a folder; the image's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(findings.rates, findings.losses)
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed", title="learning rate range test")
    for color, label, rate in (
        ("tab:green", "steepest descent", findings.steepest),
        ("tab:red", "lowest loss", findings.minimum),
    ):
        if rate is not None:
            axes.axvline(rate, color=color, linestyle="--", label=f"{label}: {rate:.3g}")
            axes.legend()
    if findings.minimum is not None:  # the valley is what matters, not how far the loss flew off afterwards
        lowest = min(findings.losses)
        depth = max(findings.losses[: findings.losses.index(lowest) + 1]) - lowest
        axes.set_ylim(lowest - 0.1 * depth, lowest + 1.5 * depth)
    axes.grid(alpha=0.3)
    plot_path = folder / "lr_range_test.png"
    with atomic_write(plot_path.with_suffix(".json"), plot_path) as (data, image):
        data.write(json.dumps(asdict(findings)).encode())
        figure.savefig(image, format="png", dpi=110)
    return plot_path
