"""Console output of a run."""

import sys
from pathlib import Path

import pytest

from rebar.reporting.console import (
    accuracy_line,
    epoch_heading,
    epoch_line,
    format_gb,
    images_per_second,
    progress,
    summary,
    table,
)
from rebar.reporting.run_folder import RunFolder

TRAINED = {
    "train/loss": 2.34567,
    "train/top1": 0.4321,
    "train/lr": 0.85,
    "train/resolution": 160,
    "throughput/samples_per_second": 12345.6,
    "time/data_wait_fraction": 0.034,
}
VALIDATED = {"val/loss": 1.5, "val/top1": 0.7376, "val/top5": 0.9144, "val/top1_tta": 0.7401, "val/top5_tta": 0.9201}
PLAIN = {name: value for name, value in VALIDATED.items() if not name.endswith("_tta")}


def test_epoch_line_shows_validation_if_available() -> None:
    start, end = ["3/16", "160", "0.85", "2.346", "43.21%"], ["12,346", "3%"]
    assert epoch_line(3, 16, TRAINED).split() == start + end
    assert epoch_line(3, 16, {**TRAINED, **PLAIN}).split() == [*start, "1.500", "73.76%", *end]
    left = epoch_line(3, 16, {**TRAINED, **VALIDATED}, seconds_left=40, is_best=True)
    assert left.split() == [*start, "1.500", "73.76%*", "74.01%", *end, "40", "s"]


def test_epoch_line_shows_small_learning_rates() -> None:
    assert " 5e-05 " in epoch_line(3, 16, {**TRAINED, "train/lr": 5e-5})


def test_epoch_line_fits_100_columns() -> None:
    largest = {**TRAINED, **VALIDATED, "train/lr": 1.2345e-5, "throughput/samples_per_second": 123456.7}
    largest |= {"train/top1": 1.0, "val/top1": 1.0, "val/top1_tta": 1.0, "train/loss": 1234.5, "val/loss": 1234.5}
    line = epoch_line(600, 600, largest, seconds_left=100 * 3600, is_best=True)
    assert len(line) == len(epoch_heading()) <= 100


def test_best_epoch_has_a_color_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = epoch_line(3, 16, TRAINED, is_best=True)
    assert "\033" not in plain
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert epoch_line(3, 16, TRAINED, is_best=True) == f"\033[32m{plain}\033[0m"
    assert epoch_line(3, 16, TRAINED) == plain.replace("*", " ").rstrip()
    monkeypatch.setenv("NO_COLOR", "1")
    assert epoch_line(3, 16, TRAINED, is_best=True) == plain


@pytest.mark.parametrize(
    ("rate", "text"), [(12345.6, "12,346 images/s"), (10, "10 images/s"), (1.0, "1 image/s"), (0.051, "0.051 images/s")]
)
def test_rates_have_significant_digits(rate: float, text: str) -> None:
    assert images_per_second(rate) == text


def test_sizes() -> None:
    assert [format_gb(size) for size in (0.0123, 1, 23.45)] == ["12 MB", "1.0 GB", "23.4 GB"]


def test_accuracy_line_shows_flip_tta_if_available() -> None:
    assert accuracy_line(PLAIN) == "top-1 73.76%, top-5 91.44%"
    with_tta = "top-1 73.76%, top-5 91.44%; with flip TTA: top-1 74.01%, top-5 92.01%"
    assert accuracy_line(VALIDATED) == with_tta


def test_summary_shows_results_and_paths() -> None:
    metrics = {**TRAINED, **VALIDATED, "time/train_seconds": 894.4, "memory/host_peak_gb": 3.21}
    lines = summary("resnet50", 25_557_032, 16, metrics, RunFolder(Path("runs/mine"))).splitlines()
    assert lines[0] == "finished"
    text = "\n".join(lines)
    for expected in ("top-1 74.01%", "25,557,032 parameters, 16 epochs", "894 s", "12,346 images/s", "3.2 GB"):
        assert expected in text
    for name in ("log.jsonl", "plot.png", "checkpoints/last.pt"):
        assert f"runs/mine/{name}" in text
    assert "GPU" not in text
    on_gpu = summary("resnet50", 1, 16, {**metrics, "memory/gpu_peak_gb": 9.87}, RunFolder(Path("runs/mine")))
    assert "GPU 9.9 GB" in on_gpu


def test_summary_shows_final_resolutions() -> None:
    ended = {"time/train_seconds": 894.4, "memory/host_peak_gb": 3.21}
    at_256 = {f"{name}_256px": value + 0.01 for name, value in VALIDATED.items()}
    at_224 = {f"{name}_224px": value for name, value in PLAIN.items()}
    text = summary("resnet50", 1, 16, {**VALIDATED, **at_224, **at_256, **ended}, RunFolder(Path("runs/mine")))
    assert "at 224 px: top-1 73.76%, top-5 91.44%\n" in text
    assert "at 256 px: top-1 74.76%, top-5 92.44%; with flip TTA: top-1 75.01%, top-5 93.01%\n" in text
    assert "px:" not in summary("resnet50", 1, 16, {**VALIDATED, **ended}, RunFolder(Path("runs/mine")))


def test_table_aligns_names_and_escapes_values() -> None:
    assert table({"name": "\x1b[31mred"}) == "  name: \\x1b[31mred"
    assert table({"a": "1", "long": "2"}, title="facts") == "facts\n     a: 1\n  long: 2"
    assert table({"a": "1"}) == "  a: 1"


@pytest.mark.parametrize("enabled", [True, False])
def test_progress_yields_all_batches(enabled: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(100), "epoch 1/2", total=100, enabled=enabled)) == list(range(100))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert ("epoch 1/2" in shown.err) == enabled
    assert shown.err.count("\r") < 10  # updated rarely in a file
