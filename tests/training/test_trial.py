"""What a range test measures is the run's own step, and nothing of it stays."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train_imagenet
from rebar.training.trial import Trial
from tests.conftest import Data, read_events

RECIPE = [
    *("--use-cutmix", "--use-randaugment", "--use-ema", "--ema-update-every=1", "--stochastic-depth=0.2"),
    *("--loss-type=bce", "--clip-norm=1", "--accumulate=2", "--max-steps=1", "--epochs=1"),
]


@pytest.fixture
def command(data: Data, tmp_path: Path) -> list[str]:
    return [str(word) for word in data.training_command(tmp_path / "run", *RECIPE)[1:]]


def test_the_range_tests_first_loss_is_the_runs(command: list[str], tmp_path: Path) -> None:
    train_imagenet.main([*command, "--find-lr", "--find-lr-steps=10"])
    tested = json.loads((tmp_path / "run/lr_range_test.json").read_text())["losses"]
    train_imagenet.main(command)
    (first,) = read_events(tmp_path / "run", "step")
    assert tested[0] == first["train/loss"]


def everything_of(trial: Trial) -> list[Any]:
    state, world = trial.state, trial.world
    assert state.average is not None
    parts = [state.model, state.optimizer, state.average]
    contents = [part.state_dict() for part in parts]  # type: ignore[attr-defined]
    return copy.deepcopy([*contents, state.meter.state_dict(world), torch.get_rng_state()])


def test_nothing_of_a_trial_stays(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Trial] = []

    def look(_: object, trial: Trial, *__: object, one_batch: Callable[[], object]) -> None:
        seen.append(trial)
        one_batch()
        before = everything_of(trial)
        with trial.undone():
            for loss in trial.losses([1.0, 1.0], 32):
                assert loss.isfinite()
            meanwhile = everything_of(trial)
        for part, kept in zip(everything_of(trial), before, strict=True):
            torch.testing.assert_close(part, kept, rtol=0, atol=0)
        assert meanwhile[2]["updates"] == 2
        assert not torch.equal(meanwhile[0]["fc.weight"], before[0]["fc.weight"])

    monkeypatch.setattr(train_imagenet, "try_out", look)
    train_imagenet.main([*command, "--dry-run"])
    assert seen
