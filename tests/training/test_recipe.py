"""What the banner and the model card say is on."""

import pytest

from rebar.config import parse_config
from rebar.training.banner import recipe_in_words
from rebar.training.config import TrainConfig
from tests.conftest import REPOSITORY


def words(*given: str, batch: int = 256, precision: str = "32", gpus: int = 0) -> list[str]:
    config = parse_config(TrainConfig, given, description="")
    return recipe_in_words(config, global_batch=batch, precision=precision, gpus=gpus).split(", ")


def test_a_plain_recipe_is_short() -> None:
    expected = ["30 epochs", "160 px", "sgd", "cyclic lr 0.5", "weight decay 4e-05", "label smoothing 0.1", "32 bit"]
    assert words() == expected


@pytest.mark.parametrize(
    ("given", "lr"),
    [
        ([], "2.048"),
        (["--lr-scaling", "linear", "--base-batch", "2048"], "0.256"),
        (["--lr-scaling", "sqrt", "--base-batch", "2048"], "0.724077"),
        (["--lr-scaling", "linear", "--max-lr", "3"], "3"),
    ],
)
def test_the_learning_rate_is_the_one_that_is_used(given: list[str], lr: str) -> None:
    recipe = f"--config-file={REPOSITORY / 'rn50_configs/mosaicml_mild.yaml'}"
    assert f"cosine lr {lr}" in words(recipe, *given)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--clip-norm", "1"], "gradients clipped at 1"),
        (["--color-jitter", "0.4"], "colour jitter 0.4"),
        (["--color-jitter-hue", "0.1"], "hue jitter 0.1"),
        (["--sync-bn"], "SyncBatchNorm"),
        (["--gradient-checkpointing"], "gradient checkpointing"),
        (["--lr-schedule-type", "cosine", "--warmup-epochs", "5"], "warm-up of 5 epochs"),
        (["--nesterov"], "Nesterov's momentum"),
        (["--stats-file", "folder/mine.json"], "channel statistics of mine.json"),
        (["--freeze-lr", "0.01"], "lr held at 0.01"),
    ],
)
def test_what_is_on_is_named(given: list[str], shown: str) -> None:
    assert shown in words(*given, gpus=4)
    assert shown not in words(gpus=4)


@pytest.mark.parametrize(
    ("given", "absent"),
    [
        (["--sync-bn"], "SyncBatchNorm"),  # on a CPU
        (["--warmup-epochs", "5"], "warm-up of 5 epochs"),  # cyclic rises by itself
        (["--nesterov", "--optimizer", "lamb"], "Nesterov's momentum"),
        (["--zero-init-residual", "--pretrained"], "zero-init residual"),
    ],
)
def test_what_has_no_effect_is_not_named(given: list[str], absent: str) -> None:
    assert absent not in words(*given)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_precision_is_the_resolved_one(precision: str) -> None:
    assert words(precision=precision)[-1] == precision
