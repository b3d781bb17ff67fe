"""Options without effect are reported, others are not."""

from pathlib import Path

import pytest

from rebar.config import parse_config
from rebar.training.config import RULES, TrainConfig, unused_options

DATA = ["--train-dataset=a.beton", "--val-dataset=b.beton"]
CASES = [  # flags without effect, the message, and flags with which the option has an effect
    (["--lr=2", "--max-lr=1"], "lr.lr = 2.0 has no effect with lr.max_lr", ["--lr=2"]),
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
    *(
        (
            [f"--wandb-{name}=mine"],
            f"logging.wandb_{name} = mine has no effect without logging.wandb",
            [f"--wandb-{name}=mine", "--wandb"],
        )
        for name in ("project", "name", "tags")
    ),
    (
        ["--overwrite"],
        "checkpoint.overwrite = True has no effect without --resume none",
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
