"""Tests of rebar.training.banner."""

import re
from pathlib import Path

import pytest

import train_imagenet
from rebar.config import parse_config
from rebar.training.banner import recipe_summary
from rebar.training.config import TrainConfig
from tests.conftest import REPOSITORY, Data, read_events

RECIPE = ["--lr-scaling", "linear", "--base-batch", "32", "--clip-norm", "1", "--optimizer.nesterov"]


def banner(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[dict[str, str], str]:
    """Run a command in this process. Returns the banner's lines by name, and the warnings."""
    train_imagenet.main([str(arg) for arg in args[1:]])
    shown = capsys.readouterr()
    block = shown.out.split("\n\n")[0].split("dry run\n")[0]
    return dict(re.findall(r"^ *(\w+): (.+)$", block, flags=re.MULTILINE)), shown.err


def test_banner_of_a_dry_run_equals_that_of_the_run(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--arch=resnet20", "--spot-notice=off", "--spot-poll-seconds=2", "--world-size", "8", "--find-lr-steps=10"]
    command = data.training_command(tmp_path / "run", *args, "--dry-run")
    facts, warnings = banner(capsys, *command)
    assert facts["model"] == "resnet20, 272,474 parameters"
    assert facts["recipe"].startswith("2 epochs, 16 px, sgd, cyclic lr 0.05")
    assert "checkpoint.spot_poll_seconds = 2.0 has no effect" in warnings
    assert "the learning rate 0.05 is not scaled to the global batch of 16" in warnings
    assert "training.find_lr_steps" in warnings
    assert not (tmp_path / "run/log.jsonl").exists()


def test_banner_shows_recipe_and_time_estimate(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = data.training_command(tmp_path / "run", "--arch=resnet20", *RECIPE)
    facts, _ = banner(capsys, *command, "--max-steps", "12")
    for part in ("cyclic lr 0.025 (0.05 x 16 / 32)", "Nesterov momentum", "gradient clipping 1", "float32"):
        assert part in facts["recipe"].split(", ")
    assert facts["time"] == "estimated after 11 steps; --dry-run estimates it without training"
    steps = read_events(tmp_path / "run", "step")
    assert steps[10]["train/lr"] == pytest.approx(0.0125, rel=1e-3)  # half of the peak
    assert read_events(tmp_path / "run", "start")[0]["precision"] == "32"

    facts, _ = banner(capsys, *command, "--max-steps", "14")  # a resumed run has a measured speed
    assert re.fullmatch(
        r"about \d+ s left, without evaluation, at the [\d,]+ images/s measured before at 16 px",
        facts["time"],
    )


def test_banner_of_a_short_and_of_a_complete_run(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, _ = banner(capsys, *data.training_command(tmp_path), "--log-every", "30", "--max-steps", "1")
    assert facts["time"] == "estimated after the first epoch"
    facts, _ = banner(capsys, *data.training_command(finished_run))
    assert "complete" in facts["run"]
    assert "time" not in facts


# ------------------------------------------------------------------ recipe summary


def summary_parts(*given: str, batch: int = 256, precision: str = "32", gpus: int = 0) -> list[str]:
    config = parse_config(TrainConfig, given, description="")
    return recipe_summary(config, global_batch=batch, precision=precision, gpus=gpus).split(", ")


def test_recipe_summary_of_the_defaults_is_short() -> None:
    expected = ["30 epochs", "160 px", "sgd", "cyclic lr 0.5", "weight decay 4e-05", "label smoothing 0.1", "float32"]
    assert summary_parts() == expected


@pytest.mark.parametrize(
    ("given", "lr"),
    [
        ([], "0.256 (2.048 x 256 / 2048)"),
        (["--lr-scaling", "sqrt"], "0.724077 (2.048 x sqrt(256 / 2048))"),
        (["--lr", "1.5"], "1.5"),
        (["--lr", "1.5", "--base-batch", "512"], "0.75 (1.5 x 256 / 512)"),
        (["--max-lr", "3"], "3"),
    ],
)
def test_recipe_summary_shows_the_scaled_learning_rate(given: list[str], lr: str) -> None:
    recipe = f"--config-file={REPOSITORY / 'rn50_configs/mosaicml_mild.yaml'}"
    assert f"cosine lr {lr}" in summary_parts(recipe, *given)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--clip-norm", "1"], "gradient clipping 1"),
        (["--color-jitter", "0.4"], "color jitter 0.4"),
        (["--color-jitter-hue", "0.1"], "hue jitter 0.1"),
        (["--sync-bn"], "SyncBatchNorm"),
        (["--gradient-checkpointing"], "gradient checkpointing"),
        (["--lr-schedule-type", "cosine", "--warmup-epochs", "5"], "warmup 5 epochs"),
        (["--nesterov"], "Nesterov momentum"),
        (["--stats-file", "folder/mine.json"], "channel statistics of mine.json"),
        (["--freeze-lr", "0.01"], "constant lr 0.01"),
    ],
)
def test_recipe_summary_shows_enabled_options(given: list[str], shown: str) -> None:
    assert shown in summary_parts(*given, gpus=4)
    assert shown not in summary_parts(gpus=4)


@pytest.mark.parametrize(
    ("given", "absent"),
    [
        (["--sync-bn"], "SyncBatchNorm"),  # on a CPU
        (["--warmup-epochs", "5"], "warmup 5 epochs"),  # the cyclic schedule has no warm-up
        (["--nesterov", "--optimizer", "lamb"], "Nesterov momentum"),
        (["--zero-init-residual", "--pretrained"], "zero-init residual"),
    ],
)
def test_recipe_summary_omits_options_without_effect(given: list[str], absent: str) -> None:
    assert absent not in summary_parts(*given)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_recipe_summary_shows_the_resolved_precision(precision: str) -> None:
    assert summary_parts(precision=precision)[-1] == precision
