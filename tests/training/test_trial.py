"""Tests of rebar.training.trial: trial steps equal training steps and leave the run unchanged."""

import copy
import json
import math
import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import train_imagenet
from rebar.errors import RebarError
from rebar.training.build import build_run
from rebar.training.command_line import parse_command_line
from rebar.training.distributed import World
from rebar.training.evaluation import validate
from rebar.training.run import Run
from rebar.training.trial import analyze, exponential_rates, plot_findings, restore_afterwards, smoothed, trial_losses
from tests.conftest import Data, read_events
from tests.storage.hub_server import TOKEN, hub_server
from tests.training.s3_server import BUCKET, s3_server


def test_exponential_rates_are_evenly_spaced_on_a_logarithmic_scale() -> None:
    rates = exponential_rates(7, lowest=1e-5, highest=10)
    assert rates == pytest.approx([10.0**power for power in range(-5, 2)])


def test_smoothed_keeps_a_constant() -> None:
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)


def test_analyze_finds_the_steepest_descent_before_the_minimum(tmp_path: Path) -> None:
    rates = exponential_rates(200, lowest=1e-5, highest=10)
    # on the logarithmic scale, the loss falls around 0.01 and rises around 1
    losses = [5 - 3 / (1 + (0.01 / rate) ** 2) + 8 / (1 + (1 / rate) ** 2) for rate in rates]
    found = analyze(rates, losses)
    assert found.steepest is not None
    assert found.minimum is not None
    assert 0.005 < found.steepest < 0.05 < found.minimum < 0.6
    advice = found.advice()
    for part in (0.1, 0.5, 1.0):
        assert f"{part * found.steepest:.3g}" in advice
    assert plot_findings(found, tmp_path / "new").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new/lr_range_test.json").exists()


def test_analyze_ignores_noise_before_the_descent() -> None:
    draw = random.Random(0)
    rates = exponential_rates(100, lowest=1e-5, highest=10)
    for _ in range(20):  # a fall by 0.6 around 0.01, noise of 0.2 in each loss
        losses = [2.5 - 0.6 / (1 + (0.01 / rate) ** 2) + draw.gauss(0, 0.2) for rate in rates[:80]]
        found = analyze(rates, losses)
        assert found.steepest is not None
        assert 0.005 < found.steepest < 0.06


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([2.3] * 100, id="flat"),
        pytest.param([2.3 + 0.001 * math.sin(i) for i in range(100)], id="noise"),
        pytest.param([2.3 + 0.1 * i for i in range(100)], id="rising"),
        pytest.param([2.3], id="one"),
    ],
)
def test_analyze_gives_no_result_if_the_loss_never_falls(losses: list[float], tmp_path: Path) -> None:
    found = analyze(exponential_rates(100, lowest=1e-5, highest=10), losses)
    assert found.steepest is None
    assert "never fell" in found.advice()
    plot_findings(found, tmp_path)


def train_here(*args: str | Path) -> None:
    train_imagenet.main([str(arg) for arg in args[1:]])


def first_loss(folder: Path) -> float:
    """Return the range test's loss before its first step."""
    loss: float = json.loads((folder / "lr_range_test.json").read_text())["losses"][0]
    return loss


@pytest.mark.parametrize(
    ("token", "role"),
    [("", "write"), ("hf_wrong", "write"), (TOKEN, "read")],
    ids=["none", "unknown", "read-only"],
)
def test_dry_run_rejects_tokens_without_write_permission(
    token: str, role: str, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    command = data.training_command(tmp_path / "run", "--dry-run", "--hf-repo", "owner/mine")
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.role = role
        with pytest.raises(RebarError):
            train_here(*command)
        assert hub.repositories == {}


def test_dry_run_creates_nothing_at_the_destinations(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("huggingface_hub")
    args = ["--dry-run", "--hf-repo", "owner/mine", "--upload", f"s3://{BUCKET}", "--export", "safetensors"]
    with hub_server() as hub, s3_server() as s3:
        for name, value in (s3.variables | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}).items():
            monkeypatch.setenv(name, value)
        train_here(*data.training_command(tmp_path / "run", *args))
        assert "GET /api/whoami-v2" in hub.requests
        assert all(request.startswith("GET ") for request in hub.requests)
        assert s3.names() == []
        with pytest.raises(RebarError, match="absent-bucket"):
            train_here(*data.training_command(tmp_path / "run", "--dry-run", "--upload", "s3://absent-bucket"))
    assert not (tmp_path / "run").exists()
    assert "about" in capsys.readouterr().out


def test_dry_run_checks_packages_and_the_folder(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RebarError) as caught:
        train_here(*data.training_command(tmp_path / "file/run", "--dry-run"))
    assert caught.value.code == "run-folder-not-writable"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else object())
    with pytest.raises(RebarError) as caught:
        train_here(*data.training_command(tmp_path / "run", "--dry-run", "--export", "onnx"))
    assert caught.value.code == "export-package-missing"
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RebarError, match="wandb") as caught:
        train_here(*data.training_command(tmp_path / "run", "--dry-run", "--wandb"))
    assert caught.value.code == "wandb-not-installed"


@pytest.mark.slow
def test_find_lr_starts_from_untrained_weights(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "run")
    train_here(*data.training_command(folder, "--find-lr", "--find-lr-steps", "60"))
    shown = capsys.readouterr().out
    match = re.search(
        r"steepest descent at ([\d.e-]+), lowest loss at ([\d.e-]+)\n"
        r"try --lr: conservative \(10 %\) ([\d.e-]+), moderate \(50 %\) ([\d.e-]+), aggressive \(100 %\) ([\d.e-]+) ",
        shown,
    )
    assert match, shown
    steepest, lowest, *rates = map(float, match.groups())
    assert rates == pytest.approx([0.1 * steepest, 0.5 * steepest, steepest], rel=0.01)
    assert 1e-5 < steepest < lowest < 10
    untrained = first_loss(folder)
    short = data.training_command(folder, "--find-lr", "--find-lr-steps", "10")
    train_here(*short, "--resume", "none")  # needs no --overwrite, as nothing is overwritten
    assert first_loss(folder) == untrained
    train_here(*short, "--resume", folder / "checkpoints/last.pt")
    assert first_loss(folder) != untrained
    checkpoint = "checkpoints/last.pt"
    assert (folder / checkpoint).read_bytes() == (finished_run / checkpoint).read_bytes()


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
    contents = [state.model.state_dict(), state.optimizer.state_dict(), state.average.state_dict()]
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
