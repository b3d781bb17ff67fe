"""Console output: progress bar, lines per epoch and per class, tables.

Metrics are passed by their names in the log, such as ``train/loss``. Accuracies are fractions, printed in percent.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rebar.cli import count, display_name, escape_control_characters, phase, warn
from rebar.reporting.run_folder import RunFolder

Metrics = Mapping[str, Any]
Item = TypeVar("Item")


def format_duration(seconds: float) -> str:
    """Format a duration, such as '3 h 05 min', '12 min' or '40 s'."""
    if seconds < 90:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_gb(gigabytes: float) -> str:
    """Format a size given in GB, such as '3.2 GB' or '48 MB'."""
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{1000 * gigabytes:.0f} MB"


def final_resolutions(metrics: Iterable[str]) -> list[int]:
    """Return the resolutions in px of metrics named like ``val/top1_224px``, in their order."""
    return [int(match[1]) for name in metrics if (match := re.fullmatch(r"val/top1_(\d+)px", name))]


def progress(batches: Iterable[Any], title: str, *, total: int, enabled: bool, initial: int = 0) -> Any:
    """Iterate over ``batches`` with a progress bar that starts at ``initial`` of ``total``.

    The bar is updated every 0.2 s on a terminal, and every 30 s in a file.
    """
    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(
        batches,
        desc=title,
        total=total,
        initial=initial,
        unit="batch",
        leave=False,
        disable=not enabled,
        mininterval=interval,
    )


def announce_first(items: Iterable[Item], description: str) -> Iterator[Item]:
    """Iterate over ``items``. While the first takes longer than five seconds, print ``description`` and the time."""
    iterator = iter(items)
    with phase(description, print_above_bar):
        first = list(islice(iterator, 1))
    yield from first
    yield from iterator


def warn_above_bar(message: str) -> None:
    """Print a warning without breaking a progress bar."""
    with tqdm.external_write_mode(file=sys.stderr):
        warn(message)


def print_above_bar(message: str) -> None:
    """Print a line without breaking a progress bar."""
    with tqdm.external_write_mode(file=sys.stderr):
        print(message, flush=True)


_COLUMNS = {  # heading and width
    "epoch": 7,
    "px": 4,
    "lr": 8,
    "train loss": 10,
    "top-1": 7,
    "val loss": 8,
    "val top-1": 9,
    "flip TTA": 8,
    "images/s": 8,
    "waiting": 7,
    "left": 12,
}


def epoch_heading() -> str:
    """Return the heading of the lines of :func:`epoch_line`."""
    return " ".join(f"{name:>{width}}" for name, width in _COLUMNS.items())


def epoch_line(epoch: int, epochs: int, metrics: Metrics, *, seconds_left: float = 0, is_best: bool = False) -> str:
    """Format the line printed after an epoch, counted from 1. It has at most 100 characters.

    The best epoch so far has an asterisk, and is green on a terminal.
    """

    def cell(name: str, form: str) -> str:
        return "" if metrics.get(name) is None else format(metrics[name], form)

    cells = (
        f"{epoch}/{epochs}",
        f"{metrics['train/resolution']}",
        cell("train/lr", ".3g"),
        cell("train/loss", ".3f"),
        cell("train/top1", ".2%"),
        cell("val/loss", ".3f"),
        cell("val/top1", ".2%") + ("*" if is_best else ""),
        cell("val/top1_tta", ".2%"),
        format_rate(metrics["throughput/samples_per_second"]),
        cell("time/data_wait_fraction", ".0%"),
        format_duration(seconds_left) if seconds_left else "",
    )
    line = " ".join(f"{text:>{width}}" for text, width in zip(cells, _COLUMNS.values(), strict=True)).rstrip()
    return colored(line, GREEN) if is_best else line


GREEN = "32"


def colored(text: str, color: str) -> str:
    """Return text for stdout in a color (an SGR code), unless it is not a terminal or NO_COLOR is set."""
    return f"\033[{color}m{text}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def format_rate(per_second: float) -> str:
    """Format a rate such as '12,345', '7.3' or '0.051', with at least two significant digits."""
    return f"{per_second:,.0f}" if per_second >= 9.95 else f"{per_second:.2g}"


def images_per_second(rate: float) -> str:
    """Format a rate with its unit, such as '12,345 images/s' or '1 image/s'."""
    number = format_rate(rate)
    return f"{number} {'image' if number == '1' else 'images'}/s"


def accuracy_line(metrics: Metrics, resolution: str = "") -> str:
    """Format the top-1 and top-5 of an evaluation, with flip TTA if it was used.

    ``resolution``, such as "256px", selects metrics by their suffix: ``val/top1_256px``.
    """
    suffix = f"_{resolution}" if resolution else ""
    line = f"top-1 {metrics[f'val/top1{suffix}']:.2%}, top-5 {metrics[f'val/top5{suffix}']:.2%}"
    if metrics.get(f"val/top1_tta{suffix}") is not None:
        line += (
            f"; with flip TTA: top-1 {metrics[f'val/top1_tta{suffix}']:.2%}, "
            f"top-5 {metrics[f'val/top5_tta{suffix}']:.2%}"
        )
    return line


def per_class_accuracy(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the recall of each class, ``[classes]``, from ``[true, predicted]`` counts; NaN without images."""
    totals = confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(totals > 0, np.diagonal(confusion) / totals, np.nan)


def class_lines(confusion: NDArray[np.int64], names: Sequence[str]) -> list[str]:
    """Return a line per class with images, the least accurate first: accuracy, images, most frequent confusion."""
    names = [display_name(name) for name in names]
    accuracy, errors = per_class_accuracy(confusion), confusion.copy()
    np.fill_diagonal(errors, 0)
    width = max(map(len, names))
    lines = []
    for label in np.argsort(np.nan_to_num(accuracy, nan=2.0), kind="stable"):
        total, predicted = int(confusion[label].sum()), int(errors[label].argmax())
        if total == 0:
            continue
        line = f"{names[label]:<{width}}  {accuracy[label]:7.2%}  of {total:,}"
        if errors[label, predicted]:
            line += f", {int(errors[label, predicted]):,} predicted as {names[predicted]}"
        lines.append(line)
    return lines


def summary(arch: str, parameters: int, epochs: int, metrics: Metrics, folder: RunFolder) -> str:
    """Format the table printed at the end of a run: results and the paths of its files."""
    gpu = f", GPU {format_gb(metrics['memory/gpu_peak_gb'])}" if "memory/gpu_peak_gb" in metrics else ""
    rows = {
        "accuracy": accuracy_line(metrics),
        **{f"at {pixels} px": accuracy_line(metrics, f"{pixels}px") for pixels in final_resolutions(metrics)},
        "model": f"{arch}, {parameters:,} parameters, {count(epochs, 'epoch')}",
        "time": f"{metrics['time/train_seconds']:,.0f} s of training, without validation",
    }
    if "throughput/samples_per_second" in metrics:
        rows["throughput"] = f"{images_per_second(metrics['throughput/samples_per_second'])} in the last epoch"
    rows |= {
        "memory": f"peak of {format_gb(metrics['memory/host_peak_gb'])}{gpu} on rank 0",
        "log": str(folder.log),
        "plot": str(folder.plot),
        "report": str(folder.report),
        "checkpoint": str(folder.last_checkpoint),
    }
    return table(rows, title="finished")


def table(rows: Mapping[str, str], *, title: str | None = None) -> str:
    """Format names and values, one pair per line, with aligned names."""
    width = max(map(len, rows)) + 2
    lines = [f"{name:>{width}}: {escape_control_characters(value)}" for name, value in rows.items()]
    return "\n".join([title, *lines] if title else lines)
