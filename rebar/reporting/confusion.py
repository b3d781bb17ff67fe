"""Accuracy of each class, and the confusion matrix as an image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rebar.reporting.console import escape_control_characters
from rebar.reporting.plots import escape_mathtext
from rebar.storage.files import atomic_write

_MAX_TICK_LABELS = 40


def per_class_accuracy(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the recall of each class, ``[classes]``, from ``[true, predicted]`` counts; NaN without images."""
    totals = confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(totals > 0, np.diagonal(confusion) / totals, np.nan)


def class_lines(confusion: NDArray[np.int64], names: Sequence[str]) -> list[str]:
    """Return a line per class with images, the least accurate first: accuracy, images, most frequent confusion."""
    names = [escape_control_characters(name) for name in names]
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
    axes.set(xlabel="predicted", ylabel="true", title=escape_mathtext(path.stem))
    if len(names) <= _MAX_TICK_LABELS:
        labels = [escape_mathtext(name) for name in names]
        axes.set_xticks(range(len(names)), labels, rotation=90)
        axes.set_yticks(range(len(names)), labels)
    color_bar = figure.colorbar(image, ax=axes, shrink=0.7)
    ticks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]
    color_bar.set_ticks(list(np.sqrt(ticks)), labels=[f"{tick:.0%}" for tick in ticks])
    with atomic_write(path) as (file,):
        figure.savefig(file, format="png", dpi=110)
