"""Complete runs on a GPU: killed and resumed, interrupted while a checkpoint is written, evaluated and exported."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rebar.training.checkpoint import read_checkpoint
from rebar.training.stopping import EXIT_PREEMPTED
from tests.conftest import REPOSITORY, Data, read_events, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
SMALL = ["--arch", "resnet10_small", "--training.precision", "fp16", "--averaging.use_ema", "1"]


def stop_at(command: list[str | Path], folder: Path, step: int, number: signal.Signals) -> int:
    """Start a run and send its process a signal once a step is logged. Return its exit status."""
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=REPOSITORY, env={**os.environ})
    try:
        deadline = time.monotonic() + 100
        while not (folder / "log.jsonl").exists() or not any(r["step"] >= step for r in read_events(folder, "step")):
            assert process.poll() is None, "the run ended before the signal"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        return process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_resume_after_a_signal_uses_the_last_checkpoint(data: Data, tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    command = data.training_command(folder, *SMALL, "--checkpoint.every_steps", "3", "--training.epochs", "8")
    status = stop_at(command, folder, 30, number)
    assert status == (EXIT_PREEMPTED if number == signal.SIGTERM else -signal.SIGKILL)
    saved = read_checkpoint(folder / "checkpoints/last.pt")
    assert saved["scaler"]["scale"] > 0
    assert saved["epoch"] < 8
    run(*command)
    steps = [record["step"] for record in read_events(folder, "step")]
    assert steps == list(range(8 * 20))  # each step once
    (end,) = read_events(folder, "end")
    assert end["epoch"] == 8


def test_evaluate_and_exported_weights_give_the_logged_accuracy(data: Data, tmp_path: Path) -> None:
    folder, top1 = tmp_path / "run", []
    run(*data.training_command(folder, *SMALL, "--checkpoint.export", "both"))
    (end,) = read_events(folder, "end")
    sources = (
        ["--checkpoint", folder],
        ["--weights", folder / "weights.pth", "--arch", "resnet10_small"],
        ["--weights", folder / "weights.safetensors", "--arch", "resnet10_small"],
    )
    for source in sources:
        size = ["--resolution", "32", "--batch-size", "16", "--precision", "fp16"]
        done = run("evaluate.py", *source, "--data", data.val, *size)
        assert f"{end['val/top1']:.2%}".rstrip("%") in done.stdout, done.stdout
        top1.append(done.stdout)
    log = json.loads((folder / "log.jsonl").read_text().splitlines()[0])
    assert "NVIDIA" in log["device"]


def test_dry_run_measures_every_stage(data: Data, tmp_path: Path) -> None:
    shown = run(*data.training_command(tmp_path / "run", *SMALL, "--dry-run")).stdout.split("what limits the speed")[1]
    for stage in ("disk", "decoding", "copy", "step", "together"):
        assert re.search(rf"^ *{stage}: [\d,.]+ images/s|^ *disk: not measured", shown, flags=re.MULTILINE), shown
    assert "what helps most: " in shown
