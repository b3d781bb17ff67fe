"""Flags of other scripts, put into ours."""

import os
import sys
from pathlib import Path

import pytest

from rebar.config import options_of, parse_config
from rebar.config.options import short_names
from rebar.errors import RebarError
from rebar.training import aliases
from rebar.training.aliases import ALIASES, SAME_HERE, table, translate
from rebar.training.config import TrainConfig
from tests.conftest import REPOSITORY


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
        (["--use-label-smoothing=0"], "training.label_smoothing", 0.0),
        (["--use-label-smoothing", "true"], "training.label_smoothing", 0.1),
        (["--lr-finder=false"], "training.find_lr", False),
        (["--lr-finder", "no", "--epochs", "3"], "training.epochs", 3),
        (["--use-channels-last=false"], "execution.channels_last", False),
        (["--use-channels-last", "false"], "execution.channels_last", False),
        (["--use_channels_last", "1"], "execution.channels_last", True),
        (["--no-amp=0"], "training.precision", "auto"),
        (["--amp=false"], "training.precision", "32"),
        (["--amp", "--config-file", "rn50_configs/g5_1gpu.yaml"], "training.precision", "bf16"),
        (["--config-name", "g4dn_1gpu", "--amp"], "training.precision", "fp16"),
        (["--config-name", "tiny", "--amp"], "training.precision", "auto"),
        (["--training.precision", "bf16", "--amp"], "training.precision", "bf16"),
        (["--amp", "--amp", "--config-name", "p5_8gpu"], "training.precision", "bf16"),
        (["--no-amp", "--config-name", "p5_8gpu"], "training.precision", "32"),
        (["--config-name", "rn50_32_epochs.yaml"], "training.epochs", 32),
    ],
)
def test_has_the_meaning_of_our_own(given: list[str], option: str, value: object) -> None:
    config = parse_config(TrainConfig, translate(given), description="")
    section, _, name = option.partition(".")
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


@pytest.mark.parametrize("words", [["--use-label-smoothing=0.2"], ["--use-label-smoothing", "0.2"]])
def test_a_switch_takes_no_amount(words: list[str]) -> None:
    with pytest.raises(RebarError) as refused:
        translate(words)
    assert str(refused.value) == (
        "--use-label-smoothing stands alone or takes true or false, not '0.2' (another amount: --label-smoothing)"
    )


@pytest.mark.parametrize("word", ["maybe", "2", ""])
def test_a_switch_refuses_what_is_neither_true_nor_false(word: str) -> None:
    with pytest.raises(RebarError, match=f"--lr-finder stands alone or takes true or false, not '{word}'"):
        translate([f"--lr-finder={word}"])


def test_a_package_without_recipes_takes_them_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "_BESIDE_THE_PACKAGE", tmp_path / "site-packages/rn50_configs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RebarError, match=r"there is no folder rn50_configs in .*give --config FILE"):
        translate(["--config-name", "mine"])
    recipe = tmp_path / "rn50_configs/mine.yaml"
    recipe.parent.mkdir()
    recipe.write_text("training: {epochs: 7}")
    assert parse_config(TrainConfig, translate(["--config-name", "mine"]), description="").training.epochs == 7
    with pytest.raises(RebarError, match=r"min\.yaml does not exist; near it there is mine\.yaml"):
        parse_config(TrainConfig, translate(["--config-name", "min"]), description="")


def test_what_is_ours_stays_as_it_is() -> None:
    words = ["--lr.lr", "0.5", "-C", "a.yaml", "--epochs=16", "--label-smoothing", "0.2"]
    assert translate(words) == words


def test_help_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(TrainConfig, ["--help"], description="", aliases=table())
    shown = capsys.readouterr().out
    assert "Flags of other scripts" in shown
    assert all(alias.flag in shown for alias in ALIASES)
    heading = shown.partition("Flags of other scripts")[2]
    assert all(f" {flag} " in f"{heading} ".replace("\n", " ") for flag in SAME_HERE)


@pytest.mark.parametrize("flag", SAME_HERE)
def test_what_is_called_the_same_here_is_a_flag_of_ours(flag: str) -> None:
    assert translate([flag]) == [flag]
    assert flag.removeprefix("--").replace("-", "_") in short_names(list(options_of(TrainConfig)))


def test_the_documented_table_is_the_one_of_the_help() -> None:
    assert f"```text\n{table()}\n```\n" in (REPOSITORY / "docs/training.md").read_text()
