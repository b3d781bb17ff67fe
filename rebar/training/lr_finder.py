"""Learning rate range test: increase the learning rate exponentially, record the loss, and suggest rates.

Smith, "Cyclical learning rates for training neural networks", WACV 2017; smoothing and the rule of the steepest descent
are fast.ai's. The result is a starting point for tuning.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rebar.storage.files import atomic_write

_SMOOTHING = 0.9
_SMOOTHING_WINDOW = 10  # approximate number of losses in the moving average
_BLOW_UP_RATIO = 4.0  # smoothed loss relative to its minimum at which the test stops
_MIN_DESCENT = 0.02  # minimum decrease, as a fraction of the first loss, for a result


@dataclass(frozen=True)
class LrFindings:
    """Learning rates and smoothed losses. ``steepest`` and ``minimum`` are None if the loss never fell."""

    rates: list[float]
    losses: list[float]
    steepest: float | None
    """Learning rate at which the loss falls fastest, on a logarithmic axis."""
    minimum: float | None
    """Learning rate with the lowest loss, which is too high for training."""

    def advice(self) -> str:
        """Describe the result, with learning rates to try: fractions of the one at the steepest descent."""
        if self.steepest is None or self.minimum is None:
            return (
                f"the loss never fell between learning rates {self.rates[0]:.1g} and {self.rates[-1]:.1g}: check data "
                "and labels, give the test more steps (--find-lr-steps), or start from less trained weights"
            )
        choices = {"conservative": 0.1, "moderate": 0.5, "aggressive": 1.0}
        rates = ", ".join(
            f"{name} ({100 * fraction:.0f} %) {fraction * self.steepest:.3g}" for name, fraction in choices.items()
        )
        return (
            f"steepest descent at {self.steepest:.3g}, lowest loss at {self.minimum:.3g}\n"
            f"try --lr: {rates} (for this global batch, with warm-up)"
        )


def exponential_rates(steps: int, *, lowest: float, highest: float) -> list[float]:
    """Return learning rates from ``lowest`` to ``highest``, evenly spaced on a logarithmic scale."""
    return [lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps)]


def smoothed(losses: Sequence[float], weight: float = _SMOOTHING) -> list[float]:
    """Return the bias-corrected exponential moving average of the losses."""
    average, result = 0.0, []
    for count, loss in enumerate(losses, start=1):
        average = weight * average + (1 - weight) * loss
        result.append(average / (1 - weight**count))
    return result


def analyze(rates: Sequence[float], losses: Sequence[float]) -> LrFindings:
    """Smooth the losses and find the steepest descent and the minimum. ``losses`` may be shorter than ``rates``."""
    smooth = smoothed(losses)
    lowest = min(range(len(smooth)), key=smooth.__getitem__)
    if lowest < 2 or smooth[0] - smooth[lowest] < _MIN_DESCENT * abs(smooth[0]):
        return LrFindings(list(rates[: len(smooth)]), smooth, None, None)
    first = 1 + min(max(_SMOOTHING_WINDOW, len(smooth) // 10), lowest - 2)  # earlier averages are noisy
    window = max(1, len(smooth) // 12)

    def slope(i: int) -> float:
        """Fit a line to the losses around ``i``, since single steps are noisy."""
        around = range(max(0, i - window), min(lowest, i + window) + 1)
        return statistics.linear_regression([math.log(rates[j]) for j in around], [smooth[j] for j in around]).slope

    steepest = min(range(first, max(first + 1, lowest - window + 1)), key=slope)
    return LrFindings(list(rates[: len(smooth)]), smooth, rates[steepest], rates[lowest])


def until_divergence(losses: Iterable[float]) -> list[float]:
    """Return the losses up to the first that is not finite, or at which the smoothed loss has risen far."""
    recorded: list[float] = []
    for loss in losses:
        if not math.isfinite(loss):
            break
        recorded.append(loss)
        smooth = smoothed(recorded)
        if len(recorded) > 10 and smooth[-1] > _BLOW_UP_RATIO * min(smooth):
            break
    return recorded


def plot_findings(findings: LrFindings, folder: Path) -> Path:
    """Write ``lr_range_test.png`` and ``.json`` into a folder. Returns the path of the plot."""
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
    if findings.minimum is not None:  # show the minimum, not the divergence after it
        lowest = min(findings.losses)
        depth = max(findings.losses[: findings.losses.index(lowest) + 1]) - lowest
        axes.set_ylim(lowest - 0.1 * depth, lowest + 1.5 * depth)
    axes.grid(alpha=0.3)
    plot_path = folder / "lr_range_test.png"
    with atomic_write(plot_path.with_suffix(".json"), plot_path) as (data, image):
        data.write(json.dumps(asdict(findings)).encode())
        figure.savefig(image, format="png", dpi=110)
    return plot_path
