"""Options without effect are reported, others are not."""

from pathlib import Path

import pytest

from rebar.config import flatten_config, parse_config, to_yaml
from rebar.errors import RebarError
from rebar.optim.schedules import peak_lr
from rebar.training.config import RULES, TrainConfig, unused_options

DATA = ["--train-dataset=a.beton", "--val-dataset=b.beton"]
CASES = [  # flags without effect, the message, and flags with which the option has an effect
    (
        ["--momentum=0.8", "--optimizer=lamb"],
        "training.momentum = 0.8 has no effect with training.optimizer lamb",
        ["--momentum=0.8", "--optimizer=lars"],
    ),
    (
        ["--start-ramp=3", "--end-ramp=3"],
        "resolution.start_ramp = 3 has no effect without max_res above min_res",
        ["--start-ramp=3", "--end-ramp=3", "--max-res=192"],
    ),
    (
        ["--end-ramp=3"],
        "resolution.end_ramp = 3 has no effect without max_res above min_res",
        ["--end-ramp=3", "--max-res=192"],
    ),
    (
        ["--round-to=4"],
        "resolution.round_to = 4 has no effect without max_res above min_res",
        ["--round-to=4", "--end-ramp=3", "--max-res=192"],
    ),
    (
        ["--min-scale=0.3", "--augmentation=none"],
        "data.min_scale = 0.3 has no effect with regularization.augmentation none",
        ["--min-scale=0.3"],
    ),
    (["--use-hf", *DATA], "data.use_hf = True has no effect with given datasets", ["--use-hf", DATA[0]]),
    (
        ["--initialization=composer", "--pretrained"],
        "model.initialization = composer has no effect with model.pretrained",
        ["--initialization=composer"],
    ),
    (
        ["--zero-init-residual", "--pretrained"],
        "model.zero_init_residual = True has no effect with model.pretrained",
        ["--zero-init-residual"],
    ),
    (
        ["--overwrite"],
        "checkpoint.overwrite = True has no effect without --resume none or FILE",
        ["--overwrite", "--resume=none"],
    ),
    (
        ["--spot-poll-seconds=1", "--spot-notice=off"],
        "checkpoint.spot_poll_seconds = 1.0 has no effect with spot_notice off",
        ["--spot-poll-seconds=1"],
    ),
    (
        ["--price-per-hour=3"],
        "training.price_per_hour = 3.0 has no effect without --dry-run",
        ["--price-per-hour=3", "--dry-run"],
    ),
    (
        ["--find-lr-steps=50"],
        "training.find_lr_steps = 50 has no effect without --find-lr",
        ["--find-lr-steps=50", "--find-lr"],
    ),
    (
        ["--find-lr-min=0.1"],
        "training.find_lr_min = 0.1 has no effect without --find-lr",
        ["--find-lr-min=0.1", "--find-lr"],
    ),
    (
        ["--find-lr-max=1"],
        "training.find_lr_max = 1.0 has no effect without --find-lr",
        ["--find-lr-max=1", "--find-lr"],
    ),
]


def messages(flags: list[str]) -> list[str]:
    return list(unused_options(parse_config(TrainConfig, flags, description="")))


@pytest.mark.parametrize(("flags", "message", "_"), CASES)
def test_unused_options_reports_option_without_effect(flags: list[str], message: str, _: list[str]) -> None:
    assert message in messages(flags)


@pytest.mark.parametrize(("_", "__", "flags"), CASES)
def test_unused_options_is_empty_if_option_has_effect(_: list[str], __: str, flags: list[str]) -> None:
    assert messages(flags) == []


def test_cases_cover_all_rules() -> None:
    assert {rule.option for rule in RULES} == {message.split(" ")[0] for _, message, _ in CASES}


@pytest.mark.parametrize("flag", ["--max-lr=1", "--optimizer=lamb", "--augmentation=none", "--pretrained"])
def test_unused_options_ignores_defaults(flag: str) -> None:
    assert messages([flag, "--spot-notice=off", *DATA]) == []


def test_unused_options_reports_options_of_config_files(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("training: {momentum: 0.8, optimizer: lamb}")
    flags = ["--config-file", str(tmp_path / "mine.yaml")]
    assert messages(flags) == ["training.momentum = 0.8 has no effect with training.optimizer lamb"]


@pytest.mark.parametrize(
    ("flags", "option", "value"),
    [
        (["--mixup-alpha", "0.2"], "regularization.use_mixup", True),
        (["--cutmix-alpha", "1.0"], "regularization.use_cutmix", True),
        (["--use-mixup", "--mixup-alpha", "0"], "regularization.mixup_alpha", 0),
        (["--mixup-alpha", "0"], "regularization.use_mixup", False),
        (["--use-mixup=false", "--mixup-alpha", "0.2"], "regularization.use_mixup", False),
        (["--wandb-project", "p"], "logging.wandb", True),
        (["--wandb-name", "n"], "logging.wandb", True),
        (["--wandb-tags", "a,b"], "logging.wandb", True),
        (["--wandb=false", "--wandb-project", "p"], "logging.wandb", False),
        (["--base-batch", "512"], "lr.lr_scaling", "linear"),
        (["--base-batch", "512", "--lr-scaling", "sqrt"], "lr.lr_scaling", "sqrt"),
        (["--lr", "0.1", "--base-batch", "512"], "lr.lr_scaling", "linear"),
    ],
)
def test_option_enables_its_feature(flags: list[str], option: str, value: object) -> None:
    assert flatten_config(parse_config(TrainConfig, flags, description=""))[option] == value


def test_a_learning_rate_is_scaled_only_if_its_base_batch_is_given_in_the_same_place(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lr: {lr: 1.7, lr_scaling: linear, base_batch: 4096}\n")
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: recipe.yaml\nlr: {lr: 0.3}\n")

    def peak(*arguments: str | Path) -> float:
        config = parse_config(TrainConfig, [str(word) for word in arguments], description="")
        assert list(unused_options(config)) == []
        return peak_lr(config.lr, global_batch=256)

    assert peak("--config-file", recipe) == 1.7 * 256 / 4096
    assert peak("--config-file", mine) == 0.3
    assert peak("--config-file", recipe, "--lr", "0.4") == 0.4
    assert peak("--config-file", recipe, "--max-lr", "0.5") == 0.5


def test_an_alpha_of_zero_in_a_file_switches_mixup_of_its_recipe_off(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("regularization: {use_mixup: true, mixup_alpha: 0.1}\n")
    (tmp_path / "mine.yaml").write_text("extends: recipe.yaml\nregularization: {mixup_alpha: 0.0}\n")
    config = parse_config(TrainConfig, ["--config-file", str(tmp_path / "mine.yaml")], description="")
    assert not config.regularization.use_mixup


def test_the_printed_configuration_is_read_back_unchanged(tmp_path: Path) -> None:
    config = parse_config(TrainConfig, ["--mixup-alpha=0.3", "--use-mixup=false", "--lr=0.2"], description="")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert parse_config(TrainConfig, ["--config-file", str(tmp_path / "config.yaml")], description="") == config


def test_an_empty_range_of_learning_rates_is_refused() -> None:
    with pytest.raises(RebarError) as error:
        parse_config(TrainConfig, ["--find-lr", "--find-lr-min", "1", "--find-lr-max", "1"], description="")
    assert error.value.code == "config-invalid-value"
