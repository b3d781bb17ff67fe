"""``evaluate.py`` beside the training run: other resolutions and crops, and what it refuses."""

from pathlib import Path

import pytest

import evaluate
from rebar.cli import run_command
from tests.conftest import Data, run


def accuracy(*words: str | Path) -> str:
    return run("evaluate.py", *words).stdout.partition(": ")[2]


def test_resolution_crop_and_batch_size_are_the_training_runs_unless_given(data: Data, finished_run: Path) -> None:
    command = ["--checkpoint", finished_run / "checkpoints/last.pt", "--data", data.val]
    as_trained = accuracy(*command)
    assert accuracy(*command, "--resolution", "32", "--crop-ratio", "0.875", "--batch-size", "7") == as_trained
    assert accuracy(*command, "--resolution", "64", "--crop-ratio", "1") != as_trained


@pytest.mark.parametrize(
    ("words", "expected"),
    [
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
