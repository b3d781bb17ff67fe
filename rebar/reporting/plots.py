"""Draw a run: loss, accuracy, learning rate and resolution over epochs.

python -m rebar.reporting.plots RUN_FOLDER

Accuracy class by class, and which classes are taken for which.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebar.cli import run_command
from rebar.errors import RebarError
from rebar.reporting.log import read_log
from rebar.storage.atomic_write import atomic_write

Record = dict[str, Any]
_LOSSES = (("train/loss", "train"), ("val/loss", "validation"))
_ACCURACIES = (
    ("train/top1", "train top-1"),
    ("val/top1", "top-1"),
    ("val/top1_tta", "top-1, mirrored too"),
    ("val/top5", "top-5"),
)


def latest_records(records: Sequence[Record], event: str, key: str) -> list[Record]:
    """The records of one event ordered by ``key``; of those a resumed run wrote twice, the last."""
    latest = {record[key]: record for record in records if record["event"] == event}
    return [latest[value] for value in sorted(latest)]


def plot_run(log_path: Path, image_path: Path) -> None:
    """Read ``log.jsonl`` and write a PNG. Raises RebarError where it has no epoch, and where writing fails."""
    records = read_log(log_path)
    epochs = latest_records(records, "epoch", "epoch")
    steps = latest_records(records, "step", "step")
    if not epochs:
        raise RebarError(f"{log_path} has no complete epoch to plot yet")

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # the object interface: no global figure, no display
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, learning_rate, resolution = figure.subplots(2, 2).flat
    _draw_losses(loss, epochs, steps)
    _draw_accuracies(accuracy, epochs)
    learning_rate.plot([s["epoch"] for s in steps], [s["train/lr"] for s in steps])
    resolution.stairs([e["train/resolution"] for e in epochs], [*(e["epoch"] for e in epochs), epochs[-1]["epoch"] + 1])
    resolution.set_ylim(0, 1.1 * max(e["train/resolution"] for e in epochs))
    titles = ("loss", "accuracy, %", "learning rate", "resolution, px")
    for axes, title in zip(figure.axes, titles, strict=True):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.set_xlim(0, 1.02 * (epochs[-1]["epoch"] + 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.suptitle(log_path.resolve().parent.name)
    with atomic_write(image_path) as (file,):
        figure.savefig(file, format="png", dpi=100)


def _draw_losses(axes: Any, epochs: Sequence[Record], steps: Sequence[Record]) -> None:
    axes.plot(
        [s["epoch"] for s in steps], [s["train/loss"] for s in steps], color="0.8", lw=1, label="train, one batch"
    )
    _draw_curves(axes, epochs, _LOSSES, scale=1)
    shown = [e[name] for e in epochs for name, _ in _LOSSES if e.get(name) is not None]
    if max(shown) > 10 * min(shown):  # an epoch that went wrong should not flatten the others
        axes.set_yscale("log")


def _draw_accuracies(axes: Any, epochs: Sequence[Record]) -> None:
    _draw_curves(axes, epochs, _ACCURACIES, scale=100)
    axes.set_ylim(0, 100)


def _draw_curves(axes: Any, epochs: Sequence[Record], curves: Sequence[tuple[str, str]], *, scale: float) -> None:
    for name, label in curves:
        points = [(e["epoch"] + 1, e[name] * scale) for e in epochs if e.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=label)
    axes.legend()


def main(argv: Sequence[str]) -> None:
    """Draw ``RUN_FOLDER/plot.png`` from ``RUN_FOLDER/log.jsonl``."""
    if len(argv) != 1 or argv[0].startswith("-"):
        raise RebarError("usage: python -m rebar.reporting.plots RUN_FOLDER")
    folder = Path(argv[0])
    if not (folder / "log.jsonl").is_file():
        raise RebarError(f"{folder} is no run folder: it has no log.jsonl")
    plot_run(folder / "log.jsonl", folder / "plot.png")
    print(folder / "plot.png")


_NAMED = 40  # classes whose names still fit beside the image


def per_class_accuracy(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each true class that was predicted right, ``[classes]``; NaN for classes without images."""
    totals = confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(totals > 0, np.diagonal(confusion) / totals, np.nan)


def class_lines(confusion: NDArray[np.int64], names: Sequence[str]) -> list[str]:
    """A line a class, the worst first: accuracy, images, and what it is most often taken for."""
    accuracy, wrong = per_class_accuracy(confusion), confusion.copy()
    np.fill_diagonal(wrong, 0)
    width = max(map(len, names))
    lines = []
    for label in np.argsort(np.nan_to_num(accuracy, nan=2.0), kind="stable"):
        total, mistaken = int(confusion[label].sum()), int(wrong[label].argmax())
        if total == 0:
            continue
        line = f"{names[label]:<{width}}  {accuracy[label]:7.2%}  of {total:,}"
        if wrong[label, mistaken]:
            line += f", {int(wrong[label, mistaken]):,} taken for {names[mistaken]}"
        lines.append(line)
    return lines


def plot_confusion(confusion: NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """Write the confusion matrix as a PNG: each row the shares of a true class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # the square root shows rare confusions beside a diagonal near 1
    image = axes.imshow(np.sqrt(shares), cmap="magma_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="predicted", ylabel="true", title=path.stem)
    if len(names) <= _NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    bar = figure.colorbar(image, ax=axes, shrink=0.7)
    marks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]
    bar.set_ticks(list(np.sqrt(marks)), labels=[f"{mark:.0%}" for mark in marks])
    with atomic_write(path) as (file,):
        figure.savefig(file, format="png", dpi=110)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
