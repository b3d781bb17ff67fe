"""Settings that change nothing are told, others are not."""

from pathlib import Path

import pytest

from rebar.config import parse_config
from rebar.training.config import TrainConfig
from rebar.training.unused_settings import IDLE, unused_setting_names

DATA = ["--train-dataset=a.beton", "--val-dataset=b.beton"]
PAIRS = [  # the words that set it in vain, what is said, and the words with which it has its effect
    (["--lr=2", "--max-lr=1"], "lr.lr = 2.0 has no effect beside lr.max_lr", ["--lr=2"]),
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
    (["--use-hf", *DATA], "data.use_hf = True has no effect beside given data sets", ["--use-hf", DATA[0]]),
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


def told(words: list[str]) -> list[str]:
    return list(unused_setting_names(parse_config(TrainConfig, words, description="")))


@pytest.mark.parametrize(("in_vain", "sentence", "_"), PAIRS)
def test_a_setting_in_vain_is_told(in_vain: list[str], sentence: str, _: list[str]) -> None:
    assert sentence in told(in_vain)


@pytest.mark.parametrize(("_", "__", "of_use"), PAIRS)
def test_one_of_use_is_not(_: list[str], __: str, of_use: list[str]) -> None:
    assert told(of_use) == []


def test_every_line_of_the_table_is_tried() -> None:
    assert {idle.setting for idle in IDLE} == {sentence.split(" ")[0] for _, sentence, _ in PAIRS}


@pytest.mark.parametrize("switch", ["--max-lr=1", "--optimizer=lamb", "--augmentation=none", "--pretrained"])
def test_what_nobody_set_is_not_told(switch: str) -> None:
    assert told([switch, "--spot-notice=off", *DATA]) == []


def test_a_file_counts_as_the_command_line_does(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("training: {momentum: 0.8, optimizer: lamb}")
    words = ["--config-file", str(tmp_path / "mine.yaml")]
    assert told(words) == ["training.momentum = 0.8 has no effect with training.optimizer lamb"]
