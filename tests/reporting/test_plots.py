"""The image of a run: which points it shows, and when there is none to show."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from rebar.errors import RebarError
from rebar.reporting.plots import latest_records, main, plot_run


def step(number: int, loss: float) -> dict[str, Any]:
    return {"event": "step", "step": number, "epoch": number / 2, "train/loss": loss, "train/lr": 0.1 * number}


def epoch(number: int, loss: float, **metrics: float | None) -> dict[str, Any]:
    shared = {"train/loss": loss, "train/top1": 0.1, "train/lr": 0.5, "train/resolution": 160 + 32 * number}
    return {"event": "epoch", "epoch": number, **shared, **metrics}


VALIDATED = {"val/loss": 2.0, "val/top1": 0.25, "val/top1_tta": 0.3, "val/top5": 0.5}
RESUMED = [  # the second epoch was trained once, cut off, and trained again
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


def curves(log: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """What is drawn: for every panel's title, each line's label and points."""
    drawn: list[Figure] = []
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, *args, **options: drawn.append(figure))
        plot_run(log, log.with_name("plot.png"))
    return {
        axes.get_title(): {str(line.get_label()): [tuple(xy) for xy in line.get_xydata()] for line in axes.get_lines()}
        for axes in drawn[0].axes
    }


def test_of_records_written_twice_the_last_counts() -> None:
    assert [(r["step"], r["train/loss"]) for r in latest_records(RESUMED, "step", "step")] == [
        (0, 9.0),
        (1, 8.0),
        (2, 5.0),
        (3, 4.0),
    ]
    assert [r["epoch"] for r in latest_records(RESUMED, "epoch", "epoch")] == [0, 1]
    assert latest_records([], "step", "step") == []


def test_a_resumed_run_is_drawn_once(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panels = curves(log, monkeypatch)
    assert list(panels) == ["loss", "accuracy, %", "learning rate", "resolution, px"]
    loss = panels["loss"]
    assert loss["train"] == [(1, 8.5), (2, 4.5)]  # after one and two epochs
    assert loss["validation"] == [(1, 2.0), (2, 2.0)]
    assert [(0, 9.0), (0.5, 8.0), (1, 5.0), (1.5, 4.0)] in loss.values()  # single steps
    assert panels["accuracy, %"]["top-1, mirrored too"] == [(1, 30), (2, 30)]
    assert panels["accuracy, %"]["top-5"] == [(1, 50), (2, 50)]


def test_an_epoch_without_validation_has_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = {**VALIDATED, "val/top1_tta": None}
    log = write_log(tmp_path / "log.jsonl", [step(0, 9.0), epoch(0, 8.5), epoch(1, 4.5, **last)])
    accuracy = curves(log, monkeypatch)["accuracy, %"]
    assert accuracy["top-1"] == [(2, 25)]
    assert accuracy["train top-1"] == [(1, 10), (2, 10)]
    assert "top-1, mirrored too" not in accuracy


def test_the_command_writes_a_png(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(log.parent)])
    image = log.with_name("plot.png")
    assert capsys.readouterr().out == f"{image}\n"
    assert image.read_bytes().startswith(b"\x89PNG")


def test_a_run_without_a_complete_epoch(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", [{"event": "start"}, step(0, 9.0)])
    with pytest.raises(RebarError, match=r"log\.jsonl has no complete epoch to plot yet"):
        plot_run(log, tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


@pytest.mark.parametrize("words", [[], ["a", "b"], ["--help"]])
def test_usage(words: list[str]) -> None:
    with pytest.raises(RebarError, match=r"usage: python -m rebar\.reporting\.plot RUN_FOLDER"):
        main(words)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(RebarError, match=r"is no run folder: it has no log\.jsonl"):
        main([str(tmp_path)])
