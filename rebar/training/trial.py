"""--dry-run and --find-lr: train a few steps of a run without changing it.

The learning rate range test increases the learning rate exponentially and records the loss (Smith, "Cyclical learning
rates for training neural networks", WACV 2017); smoothing and the rule of the steepest descent are fast.ai's. Its
result is a starting point for tuning.
"""

import copy
import itertools
import json
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from rebar.cli import count, phase, warn
from rebar.loading.options import all_resolutions
from rebar.reporting import console
from rebar.reporting.console import format_duration, format_gb
from rebar.storage.files import atomic_write
from rebar.training.bottleneck import main_resolution, measure, report
from rebar.training.distributed import sum_over_world
from rebar.training.evaluation import validate
from rebar.training.execution import rng_states, set_rng_states
from rebar.training.metrics import TrainMeter, peak_host_gb
from rebar.training.run import Run, TrainSteps

_SMOOTHING = 0.9
_SMOOTHING_WINDOW = 10  # approximate number of losses in the moving average
_DIVERGENCE_RATIO = 4.0  # smoothed loss relative to its minimum at which the test stops
_MIN_DESCENT = 0.02  # minimum decrease, as a fraction of the first loss, for a result


@dataclass(frozen=True)
class LrRangeResult:
    """Learning rates and smoothed losses. ``steepest`` and ``minimum`` are None if the loss never fell."""

    rates: list[float]
    losses: list[float]
    steepest: float | None
    """Learning rate at which the loss falls fastest, on a logarithmic axis."""
    minimum: float | None
    """Learning rate with the lowest loss, which is too high for training."""
    raw: list[float] = field(default_factory=list)
    """The losses of the single steps."""

    def advice(self) -> str:
        """Describe the result, with learning rates to try: fractions of the one at the steepest descent."""
        if self.steepest is None or self.minimum is None:
            return (
                f"the loss never fell between learning rates {self.rates[0]:.1g} and {self.rates[-1]:.1g}: check data "
                "and labels, use more steps (--find-lr-steps), or start from less trained weights"
            )
        choices = {"conservative": 0.1, "moderate": 0.5, "aggressive": 1.0}
        rates = ", ".join(
            f"{name} ({100 * fraction:.0f} %) {fraction * self.steepest:.3g}" for name, fraction in choices.items()
        )
        return (
            f"steepest descent at {self.steepest:.3g}, lowest loss at {self.minimum:.3g}\n"
            f"try --lr: {rates} (for this global batch, with warmup)"
        )


def exponential_rates(steps: int, *, lowest: float, highest: float) -> list[float]:
    """Return learning rates from ``lowest`` to ``highest``, evenly spaced on a logarithmic scale."""
    return [lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps)]


def smoothed(losses: Sequence[float], weight: float = _SMOOTHING) -> list[float]:
    """Return the bias-corrected exponential moving average of the losses."""
    average, result = 0.0, []
    for step, loss in enumerate(losses, start=1):
        average = weight * average + (1 - weight) * loss
        result.append(average / (1 - weight**step))
    return result


def analyze(rates: Sequence[float], losses: Sequence[float]) -> LrRangeResult:
    """Smooth the losses and find the steepest descent and the minimum. ``losses`` may be shorter than ``rates``."""
    smooth = smoothed(losses)
    lowest = min(range(len(smooth)), key=smooth.__getitem__)
    if lowest < 2 or smooth[0] - smooth[lowest] < _MIN_DESCENT * abs(smooth[0]):
        return LrRangeResult(list(rates[: len(smooth)]), smooth, None, None, list(losses))
    first = 1 + min(max(_SMOOTHING_WINDOW, len(smooth) // 10), lowest - 2)  # earlier averages are noisy
    window = max(1, len(smooth) // 12)

    def slope(i: int) -> float:
        """Fit a line to the losses around ``i``, since single steps are noisy."""
        around = range(max(0, i - window), min(lowest, i + window) + 1)
        return statistics.linear_regression([math.log(rates[j]) for j in around], [smooth[j] for j in around]).slope

    steepest = min(range(first, max(first + 1, lowest - window + 1)), key=slope)
    return LrRangeResult(list(rates[: len(smooth)]), smooth, rates[steepest], rates[lowest], list(losses))


def until_divergence(losses: Iterable[float]) -> list[float]:
    """Return the losses up to the first that is not finite, or at which the smoothed loss has risen far."""
    recorded: list[float] = []
    for loss in losses:
        if not math.isfinite(loss):
            break
        recorded.append(loss)
        smooth = smoothed(recorded)
        if len(recorded) > 10 and smooth[-1] > _DIVERGENCE_RATIO * min(smooth):
            break
    return recorded


def plot_findings(findings: LrRangeResult, folder: Path) -> Path:
    """Write ``lr_range_test.png`` and ``.json`` into a folder. Returns the path of the plot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # The average of the first steps is noisy, and the last ones diverge.
    shown = slice(min(_SMOOTHING_WINDOW, len(findings.rates) // 10), max(len(findings.rates) - 2, 2))
    axes.plot(findings.rates[shown], findings.raw[shown], color="0.78", linewidth=1, label="single steps")
    axes.plot(findings.rates[shown], findings.losses[shown], label="smoothed")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title="learning rate range test")
    if findings.steepest is not None:
        low, high = 0.1 * findings.steepest, findings.steepest
        axes.axvspan(low, high, color="tab:green", alpha=0.12, label=f"try: {low:.3g} to {high:.3g}")
    for color, label, rate in (
        ("tab:green", "steepest descent", findings.steepest),
        ("tab:red", "lowest loss", findings.minimum),
    ):
        if rate is not None:
            axes.axvline(rate, color=color, linestyle="--", label=f"{label}: {rate:.3g}")
    axes.legend()
    if findings.minimum is not None:  # show the minimum, not the divergence after it
        lowest = min(findings.losses)
        before = slice(0, findings.losses.index(lowest) + 1)
        bottom = min(findings.raw[before])
        depth = max(findings.losses[before]) - bottom
        axes.set_ylim(bottom - 0.1 * depth, bottom + 1.4 * depth)
    axes.grid(alpha=0.3)
    plot_path = folder / "lr_range_test.png"
    with atomic_write(plot_path.with_suffix(".json"), plot_path) as (data, image):
        data.write(json.dumps(asdict(findings)).encode())
        figure.savefig(image, format="png", dpi=110)
    return plot_path


_WARM_UP_STEPS, _TIMED_STEPS = 2, 5


def run_trial(run: Run, train_steps: TrainSteps) -> None:
    """Run the learning rate range test, the dry run, or both, as configured. Every rank must call it."""
    config, is_main = run.config, run.world.is_main
    if config.training.find_lr:
        findings = find_lr(run, train_steps)
        if is_main:
            show = print if findings.steepest else warn
            show(findings.advice())
            print(f"plot: {plot_findings(findings, run.folder.path)}", flush=True)
    if config.training.dry_run:
        resolutions = all_resolutions(config.training.epochs, config.resolution)
        facts, bottleneck = dry_run(run, train_steps, resolutions, price_per_hour=config.training.price_per_hour)
        with phase("dry run: evaluation of one batch"):
            evaluated = validate(run, max_batches=1)
        facts["evaluation"] = f"one batch of {count(evaluated.num_samples, 'image')} evaluated"
        if is_main:
            print(console.table(facts, title="dry run"))
            print(
                console.table(bottleneck, title=f"what limits the speed, at {main_resolution(resolutions)} px"),
                flush=True,
            )


def dry_run(
    run: Run, train_steps: TrainSteps, resolutions: Sequence[int], *, price_per_hour: float
) -> tuple[dict[str, str], dict[str, str]]:
    """Train a few steps at each resolution, and measure what limits their speed.

    Returns two tables, as text by name: the estimated speed, time, memory and cost, and the bottleneck report.
    ``resolutions`` are in pixels, one per epoch. ``price_per_hour`` is in dollars; 0 omits the cost.
    """
    seconds_per_step: dict[int, float] = {}
    with restore_afterwards(run):
        for resolution in sorted(set(resolutions), reverse=True):  # largest first, so that OOM occurs early
            with phase(f"dry run: steps at {resolution} px"):
                seconds_per_step[resolution] = _seconds_per_step(run, train_steps, resolution)
        memory = f"{format_gb(peak_host_gb())} on rank 0" + _gpu_memory(run.world.device)
        common = main_resolution(resolutions)
        with phase(f"dry run: what limits the speed at {common} px"):
            bottleneck = report(measure(run, train_steps, common, seconds_per_step[common]), run, common)
    hours = run.steps_per_epoch * sum(seconds_per_step[resolution] for resolution in resolutions) / 3600
    speed = ", ".join(
        f"{console.format_rate(run.train_loader.global_batch / seconds)} at {resolution} px"
        for resolution, seconds in sorted(seconds_per_step.items())
    )
    facts = {
        "images/s": speed,
        "time": f"about {format_duration(3600 * hours)} for {count(len(resolutions), 'epoch')}, without "
        "evaluation and start-up",
        "memory": memory,
    }
    if price_per_hour:
        facts["cost"] = f"about ${hours * price_per_hour:,.2f} at {price_per_hour:g} $/h"
    return facts, bottleneck


def _seconds_per_step(run: Run, train_steps: TrainSteps, resolution: int) -> float:
    """Time a few steps. Skip those whose batches were prefetched while the first step compiled."""
    times = []
    warm_up = _WARM_UP_STEPS + run.train_loader.batches_ahead
    for loss in trial_losses(run, train_steps, [0.0] * (warm_up + _TIMED_STEPS), resolution):
        loss.item()  # waits for the device
        times.append(time.perf_counter())
    return (times[-1] - times[warm_up - 1]) / _TIMED_STEPS


def _gpu_memory(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    return f", GPU {format_gb(peak / 1e9)} of {format_gb(total / 1e9)}"


def find_lr(run: Run, train_steps: TrainSteps) -> LrRangeResult:
    """Run the learning rate range test on training batches, then restore the run. Every rank must call it."""
    training = run.config.training
    rates = exponential_rates(training.find_lr_steps, lowest=training.find_lr_min, highest=training.find_lr_max)
    with restore_afterwards(run):
        steps = trial_losses(run, train_steps, rates, run.resolution)
        bar = console.progress(steps, "learning rate range test", total=len(rates), enabled=run.shows_progress)
        losses = map(torch.Tensor.item, bar)
        return analyze(rates, until_divergence(losses))


@contextmanager
def restore_afterwards(run: Run) -> Iterator[None]:
    """Restore the model, average, optimizer, scaler, meter, learning rate and RNG states when the context ends."""
    state, device = run.state, run.world.device
    stateful: list[Any] = [state.model, state.optimizer, state.scaler]
    stateful += [state.average] if state.average else []
    before = [copy.deepcopy(part.state_dict()) for part in stateful]
    random_states, meter, lr = rng_states(device), state.meter, state.lr
    state.meter = TrainMeter(device)
    try:
        yield
    finally:
        for part, saved in zip(stateful, before, strict=True):
            part.load_state_dict(saved)
        state.optimizer.zero_grad(set_to_none=True)
        state.meter, state.lr = meter, lr
        set_rng_states(random_states, device)


def trial_losses(run: Run, train_steps: TrainSteps, rates: Sequence[float], resolution: int) -> Iterator[torch.Tensor]:
    """Train one step at each learning rate on training batches of ``resolution`` pixels.

    Yields each step's mean loss over all ranks, on the device. Every rank must use it.
    """
    epochs = (run.train_loader.epoch(epoch, resolution) for epoch in itertools.count())
    batches = itertools.islice(itertools.chain.from_iterable(epochs), len(rates))
    for loss in train_steps(run, batches, rates.__getitem__):
        yield sum_over_world(loss.float().clone(), run.world) / run.world.size
