"""Flags of other scripts, put into ours."""

import os
import sys

import pytest

from rebar.config import parse_config
from rebar.errors import RebarError
from rebar.training.aliases import ALIASES, table, translate
from rebar.training.config import TrainConfig


@pytest.mark.parametrize(
    ("given", "knob", "value"),
    [
        (["--batch-size", "64"], "training.batch_size", 64),
        (["--batch_size=64"], "training.batch_size", 64),
        (["--max-lr", "0.25"], "lr.max_lr", 0.25),
        (["--scheduler", "step"], "lr.lr_schedule_type", "step"),
        (["--no-amp"], "training.precision", "32"),
        (["--amp"], "training.precision", "auto"),
        (["--use-label-smoothing", "--epochs", "3"], "training.label_smoothing", 0.1),
        (["--use-blurpool"], "training.use_blurpool", True),
        (["--data-subset", "500"], "data.data_subset", "500"),
        (["--lr-finder"], "training.find_lr", True),
        (["--experiment-name", "first"], "logging.folder", "runs/first"),
        (["--out-dir", "/data", "--experiment-name", "first"], "logging.folder", "/data/first"),
        (["--out-dir", "/data"], "logging.folder", "/data"),
        (["--config-name", "rn50_32_epochs"], "training.epochs", 32),
        (["--config", "rn50_configs/rn50_32_epochs.yaml"], "training.epochs", 32),
        (["--resume", "none"], "checkpoint.resume", "none"),
        (["--wandb-tags", "a,b"], "logging.wandb_tags", "a,b"),
        (["--use-channels-last"], "execution.channels_last", True),
        (["--channels-last", "false"], "execution.channels_last", False),
        (["--hf-repo", "owner/name"], "logging.hf_repo", "owner/name"),
        (["--upload", "s3://bucket/prefix"], "logging.upload", "s3://bucket/prefix"),
        (["--use-hf"], "data.use_hf", True),
        (["--use-mixup"], "regularization.use_mixup", True),
        (["--use-cutmix"], "regularization.use_cutmix", True),
        (["--use-randaugment"], "regularization.use_randaugment", True),
        (["--augmentation", "strong"], "regularization.augmentation", "strong"),
        (["--use-ema"], "averaging.use_ema", True),
        (["--use-swa"], "averaging.use_swa", True),
        (["--compile-model"], "execution.compile_model", True),
        (["--sync-bn"], "execution.sync_bn", True),
        (["--stats-file", "a.json"], "data.stats_file", "a.json"),
        (["--show-progress", "0"], "logging.show_progress", False),
    ],
)
def test_has_the_meaning_of_our_own(given: list[str], knob: str, value: object) -> None:
    config = parse_config(TrainConfig, translate(given), description="")
    section, _, name = knob.partition(".")
    assert getattr(getattr(config, section), name) == value


@pytest.mark.parametrize("flag", ["--multi-gpu"])
def test_a_flag_without_effect_says_so(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert translate([flag, "--epochs", "3"]) == ["--epochs", "3"]
    assert capsys.readouterr().err.startswith(f"warning: {flag} has no effect: ")


@pytest.mark.parametrize("given", [["--hf-token", "hf_abc"], ["--hf_token=hf_abc"]])
def test_a_secret_is_in_no_setting_and_not_on_the_command_line(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "before")
    monkeypatch.setattr(sys, "argv", ["train_imagenet.py", *given, "--epochs", "3"])
    assert translate([*given, "--epochs", "3"]) == ["--epochs", "3"]
    assert os.environ["HF_TOKEN"] == "hf_abc"
    assert "hf_abc" not in " ".join(sys.argv)
    assert sys.argv[-2:] == ["--epochs", "3"]


@pytest.mark.parametrize("words", [["--batch-size"], ["--batch-size", "--epochs", "3"]])
def test_a_missing_value(words: list[str]) -> None:
    with pytest.raises(RebarError, match="--batch-size needs a value: --batch-size N"):
        translate(words)


def test_what_is_ours_stays_as_it_is() -> None:
    words = ["--lr.lr", "0.5", "-C", "a.yaml", "--epochs=16", "--label-smoothing", "0.2"]
    assert translate(words) == words


def test_help_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(TrainConfig, ["--help"], description="", aliases=table())
    shown = capsys.readouterr().out
    assert "Flags of other scripts" in shown
    assert all(alias.flag in shown for alias in ALIASES)
