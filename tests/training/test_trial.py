"""Tests of rebar.training.trial: trial steps equal training steps and leave the run unchanged."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import train_imagenet
from rebar.training.distributed import World
from rebar.training.launch import parse_command_line
from rebar.training.run import Run
from rebar.training.setup import build_run
from rebar.training.trial import restore_afterwards, trial_losses
from rebar.training.validation import validate
from tests.conftest import Data, read_events

RECIPE = [
    *("--arch=resnet20", "--use-cutmix", "--use-randaugment", "--use-ema", "--ema-update-every=1"),
    *("--stochastic-depth=0.2", "--loss-type=bce", "--clip-norm=1", "--accumulate=2", "--max-steps=1", "--epochs=1"),
]


@pytest.fixture
def command(data: Data, tmp_path: Path) -> list[str]:
    return [str(word) for word in data.training_command(tmp_path / "run", *RECIPE)[1:]]


def test_first_loss_of_find_lr_equals_that_of_the_run(command: list[str], tmp_path: Path) -> None:
    train_imagenet.main([*command, "--find-lr", "--find-lr-steps=10"])
    tested = json.loads((tmp_path / "run/lr_range_test.json").read_text())["losses"]
    train_imagenet.main(command)
    (first,) = read_events(tmp_path / "run", "step")
    assert tested[0] == pytest.approx(first["train/loss"], rel=1e-12)  # the moving average rounds


def snapshot(run: Run) -> list[Any]:
    state = run.state
    assert state.average is not None
    parts = [state.model, state.optimizer, state.average]
    contents = [part.state_dict() for part in parts]  # type: ignore[attr-defined]
    return copy.deepcopy([*contents, state.meter.state_dict(run.world), torch.get_rng_state(), state.lr])


def test_restore_afterwards_restores_the_run(command: list[str], world: World) -> None:
    run = build_run(parse_command_line(command), world)
    validate(run, max_batches=1)
    before = snapshot(run)
    with restore_afterwards(run):
        for loss in trial_losses(run, train_imagenet.train_steps, [1.0, 1.0], 32):
            assert loss.isfinite()
        during = snapshot(run)
    for part, expected in zip(snapshot(run), before, strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=0)
    assert during[2]["updates"] == 2
    assert not torch.equal(during[0]["fc.weight"], before[0]["fc.weight"])
