"""Draw a run: loss, accuracy, learning rate and resolution over epochs.

python -m rebar.reporting.plot RUN_FOLDER
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rebar.cli import run_command
from rebar.errors import RebarError
from rebar.replacing import replacing
from rebar.reporting.run_log import read_log

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


def plot_run(log_path: Path, picture_path: Path) -> None:
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
    with replacing(picture_path) as (file,):
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
        raise RebarError("usage: python -m rebar.reporting.plot RUN_FOLDER")
    folder = Path(argv[0])
    if not (folder / "log.jsonl").is_file():
        raise RebarError(f"{folder} is no run folder: it has no log.jsonl")
    plot_run(folder / "log.jsonl", folder / "plot.png")
    print(folder / "plot.png")


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
