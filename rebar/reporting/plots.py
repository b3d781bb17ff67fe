"""Plots of a run over its epochs, as ``plot.png`` and as inline SVG for ``report.html``, and of a confusion matrix.

python -m rebar.reporting.plots RUN_FOLDER
"""

import io
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebar.cli import display_name, escape_control_characters, run_command
from rebar.errors import RebarError
from rebar.reporting.log import RunData, Series, read_run
from rebar.reporting.run_folder import RunFolder
from rebar.storage.files import atomic_write

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Panel:
    """One plot over epochs.

    - steps: draw a staircase, for values that are constant during an epoch.
    - from_zero: start the y axis at 0.
    - log_if_wide: use a logarithmic y axis if the values differ by a factor above 10.
    """

    title: str
    series: Sequence[Series]
    steps: bool = False
    from_zero: bool = False
    log_if_wide: bool = False

    @property
    def shown(self) -> list[Series]:
        """The series that have points."""
        return [line for line in self.series if len(line.x)]


def run_panels(run: RunData) -> list[Panel]:
    """Return the panels of one run. ``plot.png`` shows the first four."""
    losses = [
        run.step_series("train/loss", "training, single batches", faint=True),
        run.series("train/loss", "training"),
        run.series("val/loss", "validation"),
    ]
    accuracies = [
        run.series("train/top1", "training top-1", 100),
        run.series("val/top1", "top-1", 100),
        run.series("val/top1_tta", "top-1 with flip TTA", 100),
        run.series("val/top5", "top-5", 100),
    ]
    return [
        Panel("loss", losses, log_if_wide=True),
        Panel("accuracy, %", accuracies),
        Panel("learning rate", [run.step_series("train/lr", "")]),
        Panel("resolution, px", [_staircase(run.series("train/resolution", ""))], steps=True, from_zero=True),
        Panel("images/s", [run.series("throughput/samples_per_second", "")], from_zero=True),
        Panel("waiting for data, %", [run.series("time/data_wait_fraction", "", 100)], from_zero=True),
        Panel("GPU utilization, %", [run.series("gpu/utilization", "", 100)], from_zero=True),
    ]


def comparison_panels(runs: Sequence[RunData]) -> list[Panel]:
    """Return the panels of a comparison, with one line per run."""
    return [
        Panel("validation top-1, %", [run.series("val/top1", run.name, 100) for run in runs]),
        Panel("validation loss", [run.series("val/loss", run.name) for run in runs], log_if_wide=True),
        Panel("training loss", [run.series("train/loss", run.name) for run in runs], log_if_wide=True),
        Panel("learning rate", [run.step_series("train/lr", run.name) for run in runs]),
        Panel("images/s", [run.series("throughput/samples_per_second", run.name) for run in runs], from_zero=True),
        Panel(
            "waiting for data, %",
            [run.series("time/data_wait_fraction", run.name, 100) for run in runs],
            from_zero=True,
        ),
        Panel("GPU utilization, %", [run.series("gpu/utilization", run.name, 100) for run in runs], from_zero=True),
    ]


def _staircase(series: Series) -> Series:
    """Return a series whose first value starts at epoch 0."""
    return Series(series.label, [0, *series.x], [*series.y[:1], *series.y]) if series.x else series


def escape_mathtext(text: str) -> str:
    """Return text that matplotlib draws literally.

    matplotlib parses text between two ``$`` as TeX, and omits labels that start with an underscore from legends.
    """
    return ("\u200b" if text.startswith("_") else "") + escape_control_characters(text).replace("$", r"\$")


def draw(axes: Any, panel: Panel) -> None:
    """Draw a panel on matplotlib axes."""
    from matplotlib.ticker import MaxNLocator

    for line in panel.shown:
        color: dict[str, Any] = {"color": "0.78", "linewidth": 1.0, "zorder": 1} if line.faint else {}
        marker = "." if len(line.x) < 40 and not line.faint else None
        style = "steps-pre" if panel.steps else "default"
        axes.plot(
            line.x, line.y, label=escape_mathtext(display_name(line.label)), marker=marker, drawstyle=style, **color
        )
    axes.set(title=panel.title, xlabel="epoch")
    values = [value for line in panel.shown for value in line.y]
    if panel.log_if_wide and values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
    elif panel.from_zero and values and max(values) > 0:
        axes.set_ylim(0, 1.1 * max(values))
    epochs = {epoch for line in panel.shown for epoch in line.x}
    if len(epochs) == 1:  # matplotlib's range around a single point contains no other integer
        axes.set_xlim(min(epochs) - 1, max(epochs) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(panel.shown) > 1:
        axes.legend()


def to_svg(panel: Panel) -> str:
    """Return a panel as an ``<svg>`` element, or "" if no series has points."""
    if not panel.shown:
        return ""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": panel.title}):
        figure = Figure(figsize=(5.2, 3.1))  # fixed margins: constrained layout would take twice as long
        figure.subplots_adjust(left=0.12, right=0.98, bottom=0.15, top=0.91)
        FigureCanvasSVG(figure)
        draw(figure.subplots(), panel)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def plot_run(folder: Path) -> Path:
    """Plot loss, accuracy, learning rate and resolution of a run to ``plot.png``, and return its path.

    Raises RebarError if no epoch is complete, or if the image cannot be written.
    """
    run = read_run(folder)
    if not run.epochs:
        raise RebarError(
            f"{folder}: the log has no complete epoch to plot. Wait until the first epoch is complete.",
            code="log-without-epochs",
        )
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(11, 7))
        figure.subplots_adjust(left=0.06, right=0.98, bottom=0.08, top=0.9, wspace=0.15, hspace=0.32)
        FigureCanvasAgg(figure)
        for axes, panel in zip(figure.subplots(2, 2).flat, run_panels(run), strict=False):
            draw(axes, panel)
        figure.suptitle(escape_mathtext(display_name(run.name, _MAX_TITLE_LETTERS)))
        image = RunFolder(folder).plot
        with atomic_write(image) as (file,), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")
            figure.savefig(file, format="png", dpi=100)
    return image


_MAX_TICK_LABELS = 40
_MAX_TICK_LETTERS = 30
_MAX_TITLE_LETTERS = 100


def plot_confusion(confusion: NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """Write the confusion matrix as a PNG image, each row normalized to the images of the true class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fractions = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # a square-root scale makes rare confusions visible next to a diagonal near 1
    image = axes.imshow(np.sqrt(fractions), cmap="magma_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="predicted", ylabel="true", title=escape_mathtext(display_name(path.stem, _MAX_TITLE_LETTERS)))
    if len(names) <= _MAX_TICK_LABELS:
        labels = [escape_mathtext(display_name(name, _MAX_TICK_LETTERS)) for name in names]
        axes.set_xticks(range(len(names)), labels, rotation=90)
        axes.set_yticks(range(len(names)), labels)
    color_bar = figure.colorbar(image, ax=axes, shrink=0.7)
    ticks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]
    color_bar.set_ticks(list(np.sqrt(ticks)), labels=[f"{tick:.0%}" for tick in ticks])
    with atomic_write(path) as (file,), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the font has no glyph for a letter, and a box is drawn
        figure.savefig(file, format="png", dpi=110)


def main(argv: Sequence[str]) -> None:
    """Write ``RUN_FOLDER/plot.png``."""
    if len(argv) != 1 or argv[0].startswith("-"):
        message = "usage: python -m rebar.reporting.plots RUN_FOLDER"
        raise RebarError(message, code="config-invalid-value")
    print(plot_run(Path(argv[0])))


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
