"""``evaluate.py``: options, exported weights, final resolutions and errors."""

import re
from pathlib import Path

import pytest
import torch

import evaluate
import write_dataset
from rebar.cli import run_command
from rebar.models.build import build_model
from rebar.training.aliases import EVALUATE_ALIASES
from tests.conftest import Data, read_events, train_here

pytestmark = pytest.mark.usefixtures("without_plots")


def test_options_default_to_those_of_the_training_run(
    data: Data, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def accuracy(*flags: str) -> str:
        evaluate.main(["--checkpoint", str(finished_run / "checkpoints/last.pt"), "--data", str(data.val), *flags])
        return capsys.readouterr().out.partition(": ")[2]

    default = accuracy()
    assert accuracy("--resolution", "16", "--crop-ratio", "0.875", "--batch-size", "7") == default
    assert accuracy("--resolution", "24", "--crop-ratio", "1") != default


def test_exported_weights_give_the_same_results(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, image = tmp_path / "weights.safetensors", tmp_path / "confusion.png"
    args = ["--data", str(data.val), "--resolution", "16", "--per-class", "--confusion", str(image)]
    evaluate.main(["--checkpoint", str(finished_run), *args, "--export", str(weights)])
    first = capsys.readouterr().out
    evaluate.main(["--weights", str(weights), *args, "--overwrite"])  # the architecture is in the file
    assert capsys.readouterr().out == first.replace(f"weights: {weights}\n", "")
    classes = [line for line in first.splitlines() if "%  of " in line]
    assert len(classes) == 10
    assert image.exists()


def test_both_evaluates_at_224_and_256_px(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few.beton"
    write_dataset.main(["--split=val", f"--data-dir={data.tree}", f"--write-path={few}", "--subset=8"])
    capsys.readouterr()
    evaluate.main(["--checkpoint", str(finished_run), "--data", str(few), "--both"])
    lines = capsys.readouterr().out.splitlines()
    assert [re.search(r"at (\d+) px", line).group(1) for line in lines] == ["224", "256"]  # type: ignore[union-attr]


def test_final_resolutions_equal_evaluate_and_are_not_repeated(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--epochs", "1", "--lr.lr_peak_epoch", "0", "--training.batch_size", "64"]
    train = data.training_command(tmp_path, *options, "--final-resolutions", "16,24")
    train_here(*train)
    printed = capsys.readouterr().out
    (end,) = read_events(tmp_path, "end")
    checkpoint = tmp_path / "checkpoints/last.pt"
    for resolution in (16, 24):
        evaluate.main(["--checkpoint", str(tmp_path), "--data", str(data.val), "--resolution", str(resolution)])
        accuracy = capsys.readouterr().out.partition(": ")[2]
        assert f"at {resolution} px: {accuracy}" in printed
        assert f"with flip TTA: top-1 {end[f'val/top1_tta_{resolution}px']:.2%}" in accuracy
    assert all(end[f"val/{name}_16px"] == end[f"val/{name}"] for name in ("loss", "top1", "top5", "top1_tta"))
    assert end["val/loss_24px"] != end["val/loss"]

    before = checkpoint.stat()
    train_here(*train)  # the finished run does not evaluate again
    assert checkpoint.stat() == before
    assert f"at 24 px: {accuracy}" in capsys.readouterr().out
    train_here(*train, "--final-resolutions", "16,20")
    assert "at 20 px: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--weights", "a.pth"], "[config-conflict]"),
        (["--checkpoint", "", "--weights", "none.pth"], "[weights-not-found]"),
        (["--checkpoint", ""], "[config-missing-option]"),
        (["--checkpoint", "", "--weights", "w.pth", "--arch", "resnet50"], "[weights-mismatch]"),
        (["--data", "none.beton"], "none.beton"),
        (["--checkpoint", "none.pt"], "none.pt"),
        (["--resolution", "-1"], "[config-invalid-value]"),
        (["--export", "none/weights.pth"], "[file-not-writable]"),
        (["--export", "weights.h5"], "[export-unknown-format]"),
        (["--confusion", "/proc/confusion.png"], "[file-not-writable]"),
        (["--confusion", "existing.png"], "[write-target-exists]"),
        (["--export", "existing.pth"], "[write-target-exists]"),
    ],
)
def test_errors_are_one_line(
    flags: list[str],
    expected: str,
    data: Data,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("existing.png", "existing.pth"):
        Path(name).write_bytes(b"mine")
    if "w.pth" in flags:
        torch.save(build_model("resnet18", num_classes=4).state_dict(), "w.pth")
    command = ["--checkpoint", str(finished_run), "--data", str(data.val), *flags]
    with pytest.raises(SystemExit) as exit_:
        run_command(evaluate.main, command)
    message = capsys.readouterr().err
    assert exit_.value.code == 1
    assert expected in message
    assert message.count("\n") == 1
    assert ".." not in message
    assert Path("existing.pth").read_bytes() == Path("existing.png").read_bytes() == b"mine"


def test_help_lists_its_aliases(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    heading = capsys.readouterr().out.partition("Flags of other scripts")[2]
    assert all(name in heading for alias in EVALUATE_ALIASES for name in alias.names)
    assert "same name" not in heading
