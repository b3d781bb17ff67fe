"""Accuracy class by class, and which classes are taken for which."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rebar.replacing import replacing

_NAMED = 40  # classes whose names still fit beside the picture


def per_class_accuracy(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each true class that was predicted right, ``[classes]``; NaN for classes without pictures."""
    totals = confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(totals > 0, np.diagonal(confusion) / totals, np.nan)


def class_lines(confusion: NDArray[np.int64], names: Sequence[str]) -> list[str]:
    """A line a class, the worst first: accuracy, pictures, and what it is most often taken for."""
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
    with replacing(path) as (file,):
        figure.savefig(file, format="png", dpi=110)
