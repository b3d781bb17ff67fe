"""Times in words.

How much memory a process has used at most.

The names under which a log holds accuracies at several resolutions: ``val/top1_224px``.

What a person sees while a run goes on: one progress bar, one line an epoch, a summary.

All of it is made from metrics under the log's names (``train/loss`` ...), shares of 1 shown in percent.
"""

import re
import resource
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm

from rebar.cli import warn
from rebar.reporting.run_folder import RunFolder


def in_words(seconds: float) -> str:
    """Such as '3 h 05 min', '12 min', '40 s'."""
    if seconds < 90:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def peak_host_gb() -> float:
    """Peak resident memory of this process, in 10^9 bytes (pages of mapped files included)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def resolutions(names: Iterable[str]) -> list[int]:
    """The pixels at which top-1 is among ``names``, in their order."""
    return [int(match[1]) for name in names if (match := re.fullmatch(r"val/top1_(\d+)px", name))]


Metrics = Mapping[str, Any]


def progress(batches: Iterable[Any], title: str, *, total: int, enabled: bool, initial: int = 0) -> Any:
    """A progress bar over ``batches``, ``initial`` of ``total`` being done already.

    Written to a file it speaks only now and then.
    """
    between = 0.2 if sys.stderr.isatty() else 30.0  # seconds
    return tqdm(
        batches,
        desc=title,
        total=total,
        initial=initial,
        unit="batch",
        leave=False,
        disable=not enabled,
        mininterval=between,
    )


def warn_beside_bar(message: str) -> None:
    """A warning on a line of its own, also while a progress bar is drawn."""
    with tqdm.external_write_mode(file=sys.stderr):
        warn(message)


def print_beside_bar(message: str) -> None:
    """A line of its own, also while a progress bar is drawn."""
    with tqdm.external_write_mode(file=sys.stderr):
        print(message, flush=True)


def epoch_line(epoch: int, epochs: int, metrics: Metrics, *, seconds_left: float = 0) -> str:
    """One line for the ``epoch``-th of ``epochs`` epochs, counted from 1."""
    line = (
        f"epoch {epoch:3d}/{epochs}  {metrics['train/resolution']} px  lr {metrics['train/lr']:.4f}  "
        f"train loss {metrics['train/loss']:.3f} top-1 {metrics['train/top1']:.2%}"
    )
    if "val/top1" in metrics:
        line += f"  |  val loss {metrics['val/loss']:.3f} top-1 {metrics['val/top1']:.2%}"
        if metrics.get("val/top1_tta") is not None:
            line += f" (mirrored too {metrics['val/top1_tta']:.2%})"
    if metrics.get("data/corrupt_samples"):
        line += f"  |  corrupt images replaced: {metrics['data/corrupt_samples']}"
    line += (
        f"  |  {metrics['throughput/samples_per_second']:,.0f} images/s, "
        f"{metrics['time/data_wait_fraction']:.0%} waiting for data"
    )
    return line + (f"  |  {in_words(seconds_left)} left" if seconds_left else "")


def accuracy_line(metrics: Metrics, resolution: str = "") -> str:
    """Top-1 and top-5 of an evaluation, with mirror averaging where that was done.

    ``resolution`` ("256px") chooses the results whose names end in it, such as ``val/top1_256px``.
    """
    end = f"_{resolution}" if resolution else ""
    line = f"top-1 {metrics[f'val/top1{end}']:.2%}, top-5 {metrics[f'val/top5{end}']:.2%}"
    if metrics.get(f"val/top1_tta{end}") is not None:
        line += (
            f"; averaged with the mirror image: top-1 {metrics[f'val/top1_tta{end}']:.2%}, "
            f"top-5 {metrics[f'val/top5_tta{end}']:.2%}"
        )
    return line


def _accuracy_by_resolution(metrics: Metrics) -> dict[str, str]:
    return {f"at {pixels} px": accuracy_line(metrics, f"{pixels}px") for pixels in resolutions(metrics)}


def summary(arch: str, parameters: int, epochs: int, metrics: Metrics, folder: RunFolder) -> str:
    """How a finished run ended, and where its files are."""
    gpu = f", GPU {metrics['memory/gpu_peak_gb']:.1f} GB" if "memory/gpu_peak_gb" in metrics else ""
    facts = {
        "accuracy": accuracy_line(metrics),
        **_accuracy_by_resolution(metrics),
        "model": f"{arch}, {parameters:,} parameters, {epochs} epochs",
        "time": f"{metrics['time/train_seconds']:,.0f} s of training, without validation",
    }
    if "throughput/samples_per_second" in metrics:
        facts["throughput"] = f"{metrics['throughput/samples_per_second']:,.0f} images/s in the last epoch"
    facts |= {
        "memory": f"at most {metrics['memory/host_peak_gb']:.1f} GB{gpu} in the first process",
        "log": str(folder.log),
        "plot": str(folder.plot),
        "report": str(folder.report),
        "checkpoint": str(folder.last_checkpoint),
    }
    return table(facts, title="finished")


def table(facts: Mapping[str, str], *, title: str | None = None) -> str:
    """Names and values, one a line, the names aligned."""
    width = max(map(len, facts)) + 2
    lines = [f"{name:>{width}}: {value}" for name, value in facts.items()]
    return "\n".join([title, *lines] if title else lines)
