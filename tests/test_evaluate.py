"""``evaluate.py`` beside the training run: other resolutions and crops, and what it refuses."""

import re
from pathlib import Path

import pytest

import evaluate
import train_imagenet
from rebar.cli import run_command
from tests.conftest import Data, read_events, run


def accuracy(*words: str | Path) -> str:
    return run("evaluate.py", *words).stdout.partition(": ")[2]


def test_resolution_crop_and_batch_size_are_the_training_runs_unless_given(data: Data, finished_run: Path) -> None:
    command = ["--checkpoint", finished_run / "checkpoints/last.pt", "--data", data.val]
    as_trained = accuracy(*command)
    assert accuracy(*command, "--resolution", "32", "--crop-ratio", "0.875", "--batch-size", "7") == as_trained
    assert accuracy(*command, "--resolution", "64", "--crop-ratio", "1") != as_trained


def test_exported_weights_have_the_same_accuracy(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, image = tmp_path / "weights.safetensors", tmp_path / "confusion.png"
    words = ["--data", str(data.val), "--resolution", "32", "--per-class", "--confusion", str(image)]
    evaluate.main(["--checkpoint", str(finished_run), *words, "--export", str(weights)])
    first = capsys.readouterr().out
    evaluate.main(["--weights", str(weights), "--arch", "resnet20", *words])
    assert capsys.readouterr().out == first.replace(f"weights: {weights}\n", "")
    classes = [line for line in first.splitlines() if "%  of " in line]
    assert len(classes) == 10
    assert image.exists()


@pytest.mark.slow
def test_both_published_resolutions_are_reported(
    data: Data, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main(["--checkpoint", str(finished_run), "--data", str(data.val), "--both"])
    lines = capsys.readouterr().out.splitlines()
    assert [re.search(r"at (\d+) px", line).group(1) for line in lines] == ["224", "256"]  # type: ignore[union-attr]


def test_training_ends_with_the_accuracy_at_every_final_resolution(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = data.training_command(tmp_path, "--epochs", "1", "--lr.lr_peak_epoch", "0")
    train = [*map(str, command[1:]), "--final-resolutions", "32,48"]
    train_imagenet.main(train)
    told = capsys.readouterr().out
    (end,) = read_events(tmp_path, "end")
    checkpoint = tmp_path / "checkpoints/last.pt"
    for resolution in (32, 48):
        evaluate.main(["--checkpoint", str(tmp_path), "--data", str(data.val), "--resolution", str(resolution)])
        accuracy = capsys.readouterr().out.partition(": ")[2]
        assert f"at {resolution} px: {accuracy}" in told
        assert f"averaged with the mirror image: top-1 {end[f'val/top1_tta_{resolution}px']:.2%}" in accuracy
    assert all(end[f"val/{name}_32px"] == end[f"val/{name}"] for name in ("loss", "top1", "top5", "top1_tta"))
    assert end["val/loss_48px"] != end["val/loss"]

    before = checkpoint.stat()
    train_imagenet.main(train)  # is finished: what is known is not found out again
    assert checkpoint.stat() == before
    assert f"at 48 px: {accuracy}" in capsys.readouterr().out
    train_imagenet.main([*train, "--final-resolutions", "32,40"])
    assert "at 40 px: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--weights", "a.pth"], "not both"),
        (["--checkpoint", "", "--weights", "none.pth"], "none.pth does not exist"),
        (["--checkpoint", ""], "give --checkpoint, or --weights"),
        (["--data", "none.beton"], "none.beton: no such file"),
        (["--checkpoint", "none.pt"], "none.pt does not exist"),
        (["--resolution", "-1"], "evaluate.resolution = '-1'"),
    ],
)
def test_a_mistake_gets_one_clear_line(
    words: list[str], expected: str, data: Data, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--checkpoint", str(finished_run), "--data", str(data.val), *words]
    with pytest.raises(SystemExit) as stopped:
        run_command(evaluate.main, command)
    message = capsys.readouterr().err
    assert stopped.value.code == 1
    assert expected in message
    assert message.count("\n") == 1
