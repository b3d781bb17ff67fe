"""Tests of rebar.training.aliases."""

import os
import re
import sys
from pathlib import Path

import pytest

from rebar.config import config_name, flatten_config, options_of, parse_config
from rebar.config.options import short_names
from rebar.errors import RebarError
from rebar.training import translation
from rebar.training.aliases import ALIASES, FLAG_HINTS, SAME_NAME, format_table
from rebar.training.config import TrainConfig
from rebar.training.translation import translate
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("given", "option", "value"),
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
        (["-b", "64", "--opt", "momentum"], "training.batch_size", 64),
        (["--opt", "momentum"], "training.optimizer", "sgd"),
        (["--model", "resnet50-pytorch"], "model.arch", "resnet50"),
        (["--data-dir", "/my data"], "data.train_dataset", "/my data"),
        (["--data-dir", "/my data"], "data.val_dataset", "/my data"),
        (["--workers", "3"], "data.num_workers", 3),
        (["-j", "3"], "data.num_workers", 3),
        (["--grad-clip-norm", "1.0"], "optimizer.clip_norm", 1.0),
        (["--gradient_clip_val=0.5"], "optimizer.clip_norm", 0.5),
        (["--gradient-accumulation-steps", "4"], "execution.accumulate", 4),
        (["--precision", "16-mixed"], "training.precision", "fp16"),
        (["--precision", "bf16-mixed"], "training.precision", "bf16"),
        (["--iterations", "7"], "training.max_steps", 7),
        (["--epochs", "90ep"], "training.epochs", 90),
        (["--ema-half-life", "50ba"], "averaging.ema_half_life", 50),
        (["--swa-start", "0.7dur"], "averaging.swa_start", 0.7),
        (["--sched", "cosine", "--lr-warmup-epochs", "5"], "lr.warmup_epochs", 5),
        (["--lr-scheduler", "CosineAnnealingLR"], "lr.lr_schedule_type", "cosine"),
        (["--model-ema", "--smoothing", "0.1"], "averaging.use_ema", True),
        (["--mixup", "0.2"], "regularization.use_mixup", True),
        (["--ra-sampler", "--ra-reps", "4"], "regularization.repeated_augmentation", 4),
        (["--ra-reps", "4", "--ra-sampler"], "regularization.repeated_augmentation", 4),
        (["--label-smoothing", "0.2", "--use-label-smoothing"], "training.label_smoothing", 0.2),
        (["-b16", "-j2"], "training.batch_size", 16),
        (["-b16", "-j2"], "data.num_workers", 2),
        (["--amp-dtype", "bfloat16"], "training.precision", "bf16"),
        (["--bce-loss", "--img-size", "176"], "loss.loss_type", "bce"),
        (["--train-crop-size", "176"], "resolution.max_res", 176),
        (["--output", "/data"], "logging.folder", "/data"),
        (["--config-name", "aws_g4dn_12xl_ddp_config"], "training.precision", "fp16"),
        (["--config-name", "resnet_strikes_back"], "training.epochs", 300),
        (["--config-name", "colab_config"], "training.epochs", 48),
    ],
)
def test_translate_gives_equivalent_option(given: list[str], option: str, value: object) -> None:
    config = parse_config(TrainConfig, translate(given), description="")
    section, _, name = option.partition(".")
    assert getattr(getattr(config, section), name) == value


@pytest.mark.parametrize(
    "words", ["--multi-gpu", "--streaming", "--dataset imagenet-1k", "--prefetch-factor=3", "--num-gpus 4", "--ddp"]
)
def test_translate_warns_about_flag_without_effect(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert translate([*words.split(), "--epochs", "3"]) == ["--epochs", "3"]
    flag = words.split()[0].partition("=")[0]
    assert capsys.readouterr().err.startswith(f"warning: {flag} has no effect: ")


YAML = """
model: resnet50-pytorch
batch_size: 64
lr: 0.2
epochs: 9
data: {data_root: /data, num_workers: 3}
precision: bf16-mixed
trainer: {gradient_clip_val: 1.0, ddp_enabled: true, num_gpus: 4}
mixup_alpha: 0.2
"""


def test_keys_of_other_scripts_in_yaml_files_are_translated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(YAML)
    config = flatten_config(parse_config(TrainConfig, ["--config-file", str(tmp_path / "a.yaml")], description=""))
    assert {path: value for path, value in config.items() if value != flatten_config(TrainConfig())[path]} == {
        "model.arch": "resnet50",
        "training.batch_size": 64,
        "lr.lr": 0.2,
        "training.epochs": 9,
        "data.train_dataset": "/data",
        "data.val_dataset": "/data",
        "data.num_workers": 3,
        "optimizer.clip_norm": 1.0,
        "training.precision": "bf16",
        "regularization.use_mixup": True,
    }
    warnings = capsys.readouterr().err
    assert "--ddp-enabled has no effect" in warnings
    assert "--num-gpus has no effect" in warnings


def test_two_names_of_one_option_in_a_yaml_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("epochs: 3\ntraining: {epochs: 4}\n")
    with pytest.raises(RebarError) as caught:
        parse_config(TrainConfig, ["--config-file", str(tmp_path / "a.yaml")], description="")
    assert caught.value.code == "config-file-invalid"


@pytest.mark.parametrize("flag", [["--config"], ["--config-file"], ["-C"]])
def test_config_name_selects_a_configuration_of_a_config_file(flag: list[str], tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text("first: {epochs: 3}\nsecond: {training: {epochs: 5}, batch_size: 8}\n")
    argv = translate([*flag, str(file), "--config-name", "second"])
    config = parse_config(TrainConfig, argv, description="")
    assert (config.training.epochs, config.training.batch_size) == (5, 8)
    assert config_name(argv) == "second"
    with pytest.raises(RebarError, match="first, second") as caught:
        parse_config(TrainConfig, translate(["--config", str(file), "--config-name", "third"]), description="")
    assert caught.value.code == "config-file-invalid"


@pytest.mark.parametrize(("flag", "hint"), FLAG_HINTS.items())
def test_flags_that_cannot_be_translated_are_refused_with_a_hint(flag: str, hint: str) -> None:
    with pytest.raises(RebarError) as caught:
        parse_config(TrainConfig, translate([flag, "x"]), description="")
    assert caught.value.code == "config-unknown-option"
    assert hint in str(caught.value)
    named = re.findall(r"--([a-z-]+)", hint)
    assert {name.replace("-", "_") for name in named} <= {item.name for item in options_of(TrainConfig)}


def test_a_value_without_flag_is_refused() -> None:
    with pytest.raises(RebarError, match="unexpected argument '/data'") as caught:
        parse_config(TrainConfig, ["/data", "--epochs", "3"], description="")
    assert caught.value.code == "config-unknown-option"


@pytest.mark.parametrize("given", [["--hf-token", "hf_abc"], ["--hf_token=hf_abc"]])
def test_translate_moves_token_from_command_line_to_environment(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "before")
    monkeypatch.setattr(sys, "argv", ["train_imagenet.py", *given, "--epochs", "3"])
    assert translate([*given, "--epochs", "3"]) == ["--epochs", "3"]
    assert os.environ["HF_TOKEN"] == "hf_abc"
    assert "hf_abc" not in " ".join(sys.argv)
    assert sys.argv[-2:] == ["--epochs", "3"]


@pytest.mark.parametrize("args", [["--batch-size"], ["--batch-size", "--epochs", "3"], ["--batch-size", "-j", "3"]])
def test_translate_rejects_missing_value(args: list[str]) -> None:
    with pytest.raises(RebarError, match="--batch-size N") as caught:
        translate(args)
    assert caught.value.code == "config-invalid-value"


@pytest.mark.parametrize("args", [["--use-label-smoothing=0.2"], ["--use-label-smoothing", "0.2"]])
def test_translate_refers_to_option_with_value(args: list[str]) -> None:
    with pytest.raises(RebarError, match=r"'0\.2'.* --label-smoothing") as caught:
        translate(args)
    assert caught.value.code == "config-invalid-value"


@pytest.mark.parametrize("word", ["maybe", "2", ""])
def test_translate_rejects_invalid_boolean(word: str) -> None:
    with pytest.raises(RebarError, match=f"--lr-finder: '{word}'") as caught:
        translate([f"--lr-finder={word}"])
    assert caught.value.code == "config-invalid-value"


def test_config_name_falls_back_to_recipes_in_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation, "REPOSITORY_RECIPES", tmp_path / "site-packages/rn50_configs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RebarError, match="rn50_configs") as caught:
        translate(["--config-name", "mine"])
    assert caught.value.code == "config-file-not-found"
    recipe = tmp_path / "rn50_configs/mine.yaml"
    recipe.parent.mkdir()
    recipe.write_text("training: {epochs: 7}")
    assert parse_config(TrainConfig, translate(["--config-name", "mine"]), description="").training.epochs == 7
    with pytest.raises(RebarError, match=r"min\.yaml.* mine\.yaml"):
        parse_config(TrainConfig, translate(["--config-name", "min"]), description="")


def test_translate_keeps_other_flags() -> None:
    argv = ["--lr.lr", "0.5", "-C", "a.yaml", "--epochs=16", "--label-smoothing", "0.2"]
    assert translate(argv) == argv


def test_help_lists_all_aliases(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(TrainConfig, ["--help-all"], description="", aliases=format_table())
    output = capsys.readouterr().out
    assert "Flags of other scripts" in output
    assert all(name in output for alias in ALIASES for name in alias.names)
    heading = output.partition("Flags of other scripts")[2]
    assert all(f" {flag} " in f"{heading} ".replace("\n", " ") for flag in SAME_NAME)


@pytest.mark.parametrize("flag", SAME_NAME)
def test_flags_with_same_name_exist(flag: str) -> None:
    assert translate([flag]) == [flag]
    assert flag.removeprefix("--").replace("-", "_") in short_names(list(options_of(TrainConfig)))


def test_alias_table_in_docs_equals_help() -> None:
    assert f"```text\n{format_table()}\n```\n" in (REPOSITORY / "docs/training.md").read_text()
