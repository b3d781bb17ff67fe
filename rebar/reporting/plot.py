"""Draw a run: loss, accuracy, learning rate and resolution over epochs.

python -m rebar.reporting.plot RUN_FOLDER
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rebar.cli import run_command
from rebar.errors import RebarError
from rebar.reporting.run_log import read_log

_PANELS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("loss", (("train/loss", "train"), ("val/loss", "validation"))),
    (
        "accuracy, %",
        (
            ("train/top1", "train top-1"),
            ("val/top1", "top-1"),
            ("val/top1_tta", "top-1, mirrored too"),
            ("val/top5", "top-5"),
        ),
    ),
    ("learning rate", (("train/lr", "learning rate"),)),
    ("resolution, px", (("train/resolution", "resolution"),)),
)


def latest_records(records: Sequence[dict[str, Any]], event: str, key: str) -> list[dict[str, Any]]:
    """The records of one event ordered by ``key``; of those a resumed run wrote twice, the last."""
    latest = {record[key]: record for record in records if record["event"] == event}
    return [latest[value] for value in sorted(latest)]


def plot_run(log_path: Path, picture_path: Path) -> None:
    """Read ``log.jsonl`` and write a PNG. Raises RebarError where there is no epoch to draw."""
    records = read_log(log_path)
    epochs = latest_records(records, "epoch", "epoch")
    steps = latest_records(records, "step", "step")
    if not epochs:
        raise RebarError(f"{log_path} has no complete epoch to plot yet")

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # the object interface: no global figure, no display

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, curves) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        scale = 100 if "%" in title else 1
        if steps and curves[0][0] in steps[0]:
            name = curves[0][0]
            axes.plot([s["epoch"] for s in steps], [s[name] for s in steps], color="0.75", lw=1)
        for name, label in curves:
            points = [(e["epoch"] + 1, e[name] * scale) for e in epochs if e.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=label)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend()
    figure.suptitle(log_path.parent.name)
    figure.savefig(picture_path, dpi=100)


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
