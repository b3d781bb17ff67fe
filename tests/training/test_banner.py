"""What a run says before its first step, through the command line."""

import re
from pathlib import Path

import pytest

import train_imagenet
from tests.conftest import Data, read_events

RECIPE = ["--lr-scaling", "linear", "--base-batch", "32", "--clip-norm", "1", "--optimizer.nesterov"]


def banner(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[dict[str, str], str]:
    """The banner's lines by their names, and the warnings, of a command that is run here."""
    train_imagenet.main([str(word) for word in words[1:]])
    shown = capsys.readouterr()
    block = shown.out.split("\n\n")[0].split("dry run\n")[0]
    return dict(re.findall(r"^ *(\w+): (.+)$", block, flags=re.MULTILINE)), shown.err


@pytest.mark.parametrize("trial", ["--dry-run", "--find-lr"])
def test_a_trial_says_and_warns_of_all_that_the_run_would(
    trial: str, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--wandb-name", "mine", "--world-size", "8", "--find-lr-steps=10"]
    command = data.training_command(tmp_path / "run", *words, trial)
    facts, warnings = banner(capsys, *command)
    assert facts["model"] == "resnet18, 11,181,642 parameters"
    assert facts["recipe"].startswith("2 epochs, 32 px, sgd, cyclic lr 0.05")
    assert "logging.wandb_name = mine has no effect without logging.wandb" in warnings
    assert "this recipe is written for 8 processes; with 1 the global batch is 16 instead of 128" in warnings
    assert ("training.find_lr_steps" in warnings) == (trial == "--dry-run")
    assert not (tmp_path / "run/log.jsonl").exists()


def test_the_recipe_has_the_learning_rate_of_the_log_and_the_time_is_told(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = data.training_command(tmp_path / "run", *RECIPE)
    facts, _ = banner(capsys, *command, "--max-steps", "12")
    for part in ("cyclic lr 0.025", "Nesterov's momentum", "gradients clipped at 1", "32 bit"):
        assert part in facts["recipe"].split(", ")
    assert facts["time"] == "estimated after 11 steps; beforehand by --dry-run"
    steps = read_events(tmp_path / "run", "step")
    assert steps[10]["train/lr"] == pytest.approx(0.0125, rel=1e-3)  # half way up
    assert read_events(tmp_path / "run", "start")[0]["precision"] == "32"

    facts, _ = banner(capsys, *command, "--max-steps", "14")  # goes on: its speed is known
    assert re.fullmatch(
        r"about \d+ s left, without evaluation; by [\d,]+ images/s at 32 px before",
        facts["time"],
    )


def test_a_run_too_short_to_be_timed_at_once_says_when(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, _ = banner(capsys, *data.training_command(tmp_path), "--log-every", "30", "--max-steps", "1")
    assert facts["time"] == "estimated after the first epoch"
    facts, _ = banner(capsys, *data.training_command(finished_run))
    assert "complete already" in facts["run"]
    assert "time" not in facts
