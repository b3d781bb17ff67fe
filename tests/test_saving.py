"""Whatever goes wrong, the last good checkpoint stays, and the run goes on from it; through the command line."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rebar.training.checkpoint import read_checkpoint
from tests.conftest import REPOSITORY, Data, read_events, run
from tests.test_resume import Words, assert_same_run, disturb, status


@pytest.fixture(scope="module")
def good_epoch(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch that went well."""
    folder = tmp_path_factory.mktemp("runs") / "good"
    run(*data.training_command(folder, "--epochs", "1", "--keep-every", "1"))
    return folder


def resumed_command(data: Data, good: Path, folder: Path, *words: str) -> Words:
    """A run in a folder of its own that has the good epoch's checkpoint, and goes on from it."""
    (folder / "checkpoints").mkdir(parents=True)
    os.link(good / "checkpoints/last.pt", folder / "checkpoints/last.pt")
    return data.training_command(folder, "--epochs", "2", *words)


def test_the_copies_that_are_kept_are_of_their_epochs(good_epoch: Path, finished_run: Path) -> None:
    kept = {path.name: path.read_bytes() for path in (good_epoch / "checkpoints").iterdir()}
    assert kept["epoch_001.pt"] == kept["last.pt"]
    top1 = [record["val/top1"] for record in read_events(finished_run, "epoch")]
    best = read_checkpoint(finished_run / "checkpoints/best.pt")
    assert top1[best["epoch"] - 1] == best["best_top1"] == max(top1)


def wild(*words: str, message: str, name: str, quick: bool = False) -> Any:
    """A run with a learning rate that no weights survive, and how it ends."""
    return pytest.param(words, message, id=name, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        wild("--freeze-lr", "1e30", message="the training loss became", name="seen at a log point"),
        wild("--freeze-lr", "1e39", "--log-every", "99", message="the training loss became", name="at the epoch's end"),
        wild("--freeze-lr", "1e39", "--every-steps", "1", message="momenta became", name="at a save", quick=True),
        wild("--freeze-lr", "1e39", "--max-steps", "21", message="momenta became", name="at a limit"),
        wild(
            *("--freeze-lr", "1e39", "--training.batch_size", "320"),  # an epoch of one step
            message="momenta became",
            name="after the evaluation",
        ),
    ],
)
def test_a_wild_learning_rate_leaves_the_good_checkpoint(
    words: tuple[str, ...], message: str, data: Data, good_epoch: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    failed = run(*resumed_command(data, good_epoch, folder, *words), expect=1)
    assert failed.stderr.count("error: ") == 1
    assert message in failed.stderr
    assert "the last checkpoint is from before. Lower --lr" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert status(folder)[0] == "failed"
    assert "NaN" not in (folder / "log.jsonl").read_text()
    assert (folder / "checkpoints/last.pt").read_bytes() == (good_epoch / "checkpoints/last.pt").read_bytes()


@pytest.mark.slow
def test_and_a_sane_rate_ends_the_run_well(data: Data, good_epoch: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(*resumed_command(data, good_epoch, folder, "--freeze-lr", "1e39"), expect=1)
    resumed = run(*data.training_command(folder, "--epochs", "2", "--freeze-lr", "0.01"))
    assert "going on after epoch 1" in resumed.stdout
    assert status(folder) == ("finished", "", 0)


def test_a_disk_without_room_for_a_checkpoint(data: Data, good_epoch: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = resumed_command(data, good_epoch, folder, "--every-steps", "4")
    limited = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50 << 20, 50 << 20)),  # a checkpoint has 90
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert limited.returncode == 1, limited.stderr
    assert "checkpoints/last.pt cannot be written" in limited.stderr
    assert "The one before it, if any, is intact; free some space and run the same command again" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert status(folder)[0] == "failed"
    assert 23 <= max(record["step"] for record in read_events(folder, "step")) < 28  # told before the next save
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.pt"]
    assert (folder / "checkpoints/last.pt").read_bytes() == (good_epoch / "checkpoints/last.pt").read_bytes()


# A disk so slow that the second checkpoint never gets beyond its first half.
SLOW_DISK = """if True:
    import io, sys, time, torch, train_imagenet
    from pathlib import Path
    from rebar.cli import run_command
    whole, saves = torch.save, []
    def save(content, file):
        buffer = io.BytesIO()
        whole(content, buffer)
        saves.append(content)
        if len(saves) == 1:
            file.write(buffer.getvalue())
            return
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        time.sleep(300)
    torch.save = save
    run_command(train_imagenet.main, {words!r})
"""


def test_killed_while_a_checkpoint_is_written_the_one_before_is_whole(
    data: Data, finished_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = data.training_command(folder, "--every-steps", "8")
    code = SLOW_DISK.format(words=[str(word) for word in command[1:]])

    def kill(pid: int) -> None:  # at step 19, three steps after the second save began, which is still under way
        checkpoints = folder / "checkpoints"
        (partial,) = checkpoints.glob(".last.pt.partial-*")
        while partial.stat().st_size < (checkpoints / "last.pt").stat().st_size // 2:
            time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)

    assert disturb(["-c", code], folder, 19, kill) == -signal.SIGKILL
    assert read_checkpoint(folder / "checkpoints/last.pt")["meter"]["steps"] == 8
    assert status(folder)[0] == "running"
    assert "8 steps of the next" in run(*command).stdout
    assert_same_run(folder, finished_run)
    assert not list((folder / "checkpoints").glob(".*"))
