"""Classes, and what they are taken for."""

from pathlib import Path

import numpy as np

from rebar.reporting.plots import class_lines, per_class_accuracy, plot_confusion

CONFUSION = np.array([[8, 2, 0], [3, 1, 0], [0, 0, 0]])
NAMES = ["hen", "ostrich", "robin"]


def test_accuracy_of_each_class() -> None:
    np.testing.assert_allclose(per_class_accuracy(CONFUSION), [0.8, 0.25, np.nan])


def test_the_worst_comes_first_and_classes_without_images_not_at_all() -> None:
    worst, best = class_lines(CONFUSION, NAMES)
    assert worst == "ostrich   25.00%  of 4, 3 taken for hen"
    assert best == "hen       80.00%  of 10, 2 taken for ostrich"


def test_the_image(tmp_path: Path) -> None:
    plot_confusion(CONFUSION, NAMES, tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
