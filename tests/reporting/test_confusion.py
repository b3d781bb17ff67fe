"""Accuracy per class and the confusion matrix."""

from pathlib import Path

import numpy as np

from rebar.reporting.confusion import class_lines, per_class_accuracy, plot_confusion

CONFUSION = np.array([[8, 2, 0], [3, 1, 0], [0, 0, 0]])
NAMES = ["hen", "ostrich", "robin"]


def test_per_class_accuracy_is_nan_without_images() -> None:
    np.testing.assert_allclose(per_class_accuracy(CONFUSION), [0.8, 0.25, np.nan])


def test_class_lines_are_sorted_by_accuracy_without_empty_classes() -> None:
    worst, best = class_lines(CONFUSION, NAMES)
    assert worst == "ostrich   25.00%  of 4, 3 predicted as hen"
    assert best == "hen       80.00%  of 10, 2 predicted as ostrich"


def test_class_lines_escape_control_characters() -> None:
    assert "\x1b" not in "".join(class_lines(CONFUSION, ["\x1b[31mhen", "ostrich", "robin"]))


def test_plot_confusion_writes_png_for_any_class_names(tmp_path: Path) -> None:
    plot_confusion(CONFUSION, ["$hen$", r"$\bad$", "_robin"], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
