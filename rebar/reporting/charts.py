"""Line charts as inline SVG."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
class Series:
    """Points of one line; ``faint`` for what is only background."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str = "",
    stairs: bool = False,
    from_zero: bool = False,
) -> str:
    """The lines that have points, as an ``<svg>`` element; an empty text where none has any.

    The scale is logarithmic where values differ by a factor of ten or more and all are positive.
    """
    shown = [line for line in series if len(line.x)]
    if not shown:
        return ""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(5.2, 3.1), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for line in shown:
            color: dict[str, Any] = {"color": "0.78", "linewidth": 1.0, "zorder": 1} if line.faint else {}
            marker = "." if len(line.x) < 40 and not line.faint else None
            style = "steps-pre" if stairs else "default"
            axes.plot(line.x, line.y, label=line.label, marker=marker, drawstyle=style, **color)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        values = [value for line in shown for value in line.y]
        if "loss" in title and min(values) > 0 and max(values) > 10 * min(values):
            axes.set_yscale("log")
        elif (stairs or from_zero) and max(values) > 0:
            axes.set_ylim(0, 1.1 * max(values))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(shown) > 1:
            axes.legend()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
