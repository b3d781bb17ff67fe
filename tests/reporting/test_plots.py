"""Tests of rebar.reporting.plots."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from rebar.errors import RebarError
from rebar.reporting.console import class_lines, per_class_accuracy
from rebar.reporting.log import Series, latest_records
from rebar.reporting.plots import Panel, draw, main, plot_confusion, plot_run


def step(number: int, loss: float) -> dict[str, Any]:
    return {"event": "step", "step": number, "epoch": number / 2, "train/loss": loss, "train/lr": 0.1 * number}


def epoch(number: int, loss: float, **metrics: float | None) -> dict[str, Any]:
    training = {"train/loss": loss, "train/top1": 0.1, "train/lr": 0.5, "train/resolution": 160 + 32 * number}
    return {"event": "epoch", "epoch": number, **training, **metrics}


VALIDATED = {"val/loss": 2.0, "val/top1": 0.25, "val/top1_tta": 0.3, "val/top5": 0.5}
RESUMED = [  # interrupted in the second epoch, which was then trained again
    {"event": "start"},
    step(0, 9.0),
    step(1, 8.0),
    epoch(0, 8.5, **VALIDATED),
    step(2, 7.0),
    step(3, 6.0),
    {"event": "start"},
    step(2, 5.0),
    step(3, 4.0),
    epoch(1, 4.5, **VALIDATED),
    {"event": "end"},
]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "log.jsonl", RESUMED)


def write_log(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def plotted(log: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return the points that plot_run draws, by panel title and line label."""
    drawn: list[Figure] = []
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, *args, **options: drawn.append(figure))
        plot_run(log.parent)
    return {
        axes.get_title(): {str(line.get_label()): [tuple(xy) for xy in line.get_xydata()] for line in axes.get_lines()}
        for axes in drawn[0].axes
    }


def test_latest_records_keep_last_record_of_each_step() -> None:
    assert [(r["step"], r["train/loss"]) for r in latest_records(RESUMED, "step", "step")] == [
        (0, 9.0),
        (1, 8.0),
        (2, 5.0),
        (3, 4.0),
    ]
    assert [r["epoch"] for r in latest_records(RESUMED, "epoch", "epoch")] == [0, 1]
    assert latest_records([], "step", "step") == []


def test_plot_run_draws_each_epoch_of_resumed_run_once(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panels = plotted(log, monkeypatch)
    assert list(panels) == ["loss", "accuracy, %", "learning rate", "resolution, px"]
    loss = panels["loss"]
    assert loss["training"] == [(1, 8.5), (2, 4.5)]  # at the ends of the epochs
    assert loss["validation"] == [(1, 2.0), (2, 2.0)]
    assert loss["training, single batches"] == [(0, 9.0), (0.5, 8.0), (1, 5.0), (1.5, 4.0)]
    assert panels["accuracy, %"]["top-1 with flip TTA"] == [(1, 30), (2, 30)]
    assert panels["accuracy, %"]["top-5"] == [(1, 50), (2, 50)]


def test_plot_run_omits_epochs_without_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = {**VALIDATED, "val/top1_tta": None}
    log = write_log(tmp_path / "log.jsonl", [step(0, 9.0), epoch(0, 8.5), epoch(1, 4.5, **last)])
    accuracy = plotted(log, monkeypatch)["accuracy, %"]
    assert accuracy["top-1"] == [(2, 25)]
    assert accuracy["training top-1"] == [(1, 10), (2, 10)]
    assert "top-1 with flip TTA" not in accuracy


def test_main_writes_png_for_any_folder_name(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = log.parent / "$a_b^$"
    folder.mkdir()
    log.rename(folder / "log.jsonl")
    main([str(folder)])
    image = folder / "plot.png"
    assert capsys.readouterr().out == f"{image}\n"
    assert image.read_bytes().startswith(b"\x89PNG")


def test_plot_run_rejects_run_without_complete_epoch(tmp_path: Path) -> None:
    write_log(tmp_path / "log.jsonl", [{"event": "start"}, step(0, 9.0)])
    with pytest.raises(RebarError) as caught:
        plot_run(tmp_path)
    assert caught.value.code == "log-without-epochs"
    assert not (tmp_path / "plot.png").exists()


@pytest.mark.parametrize("args", [[], ["a", "b"], ["--help"]])
def test_main_prints_usage(args: list[str]) -> None:
    with pytest.raises(RebarError, match=r"python -m rebar\.reporting\.plots RUN_FOLDER"):
        main(args)


def test_main_rejects_folder_without_log(tmp_path: Path) -> None:
    with pytest.raises(RebarError) as caught:
        main([str(tmp_path)])
    assert caught.value.code == "run-not-found"


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


@pytest.mark.parametrize("epochs", [[1], [1, 2], list(range(1, 91))])
def test_ticks_of_epochs_are_integers(epochs: list[float]) -> None:
    axes = Figure().subplots()
    draw(axes, Panel("accuracy", [Series("top-1", epochs, [0.5] * len(epochs))]))
    left, right = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if left <= tick <= right]
    assert shown
    assert all(tick == int(tick) for tick in shown)
