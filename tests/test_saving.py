"""Failures of training and of the disk leave the last good checkpoint, and the run resumes from it."""

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import train_imagenet
from rebar.errors import RebarError
from rebar.training import publish
from rebar.training.checkpoint import read_checkpoint
from tests.conftest import REPOSITORY, Data, fill, mounted_tmpfs, read_events, train_here
from tests.processes import interrupt
from tests.test_resume import assert_same_run, status

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(scope="module")
def good_epoch(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a successful run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "good"
    train_here(*data.training_command(folder, "--epochs", "1", "--keep-every", "1"))
    return folder


def resumed_command(data: Data, good: Path, folder: Path, *args: str) -> list[str | Path]:
    """Return a command that resumes from the good epoch's checkpoint, in another folder."""
    (folder / "checkpoints").mkdir(parents=True)
    os.link(good / "checkpoints/last.pt", folder / "checkpoints/last.pt")
    return data.training_command(folder, "--epochs", "2", *args)


def test_kept_checkpoints_are_of_their_epochs(good_epoch: Path, finished_run: Path) -> None:
    kept = {path.name: path.read_bytes() for path in (good_epoch / "checkpoints").iterdir()}
    assert kept["epoch_001.pt"] == kept["last.pt"]
    top1 = [record["val/top1"] for record in read_events(finished_run, "epoch")]
    best = read_checkpoint(finished_run / "checkpoints/best.pt")
    assert top1[best["epoch"] - 1] == best["best_top1"] == max(top1)


def diverging(*args: str, subject: str, name: str) -> Any:
    """Options of a run with a huge learning rate, and the values that become NaN."""
    return pytest.param(args, subject, id=name)


@pytest.mark.parametrize(
    ("args", "subject"),
    [
        diverging("--freeze-lr", "1e30", subject="training loss", name="found at a logged step"),
        diverging("--freeze-lr", "1e39", "--log-every", "99", subject="training loss", name="found at the epoch end"),
        diverging("--freeze-lr", "1e39", "--every-steps", "1", subject="momenta", name="found when saving"),
        diverging("--freeze-lr", "1e39", "--max-steps", "21", subject="momenta", name="found at a limit"),
        diverging(
            *("--freeze-lr", "1e39", "--training.batch_size", "320"),  # an epoch of one step
            subject="momenta",
            name="found after the evaluation",
        ),
    ],
)
def test_divergence_leaves_the_good_checkpoint(
    args: tuple[str, ...], subject: str, data: Data, good_epoch: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RebarError, match=f"{subject} became") as error:
        train_here(*resumed_command(data, good_epoch, folder, *args))
    assert error.value.code == "training-diverged"
    assert status(folder)[0] == "failed"
    assert "NaN" not in (folder / "log.jsonl").read_text()
    assert (folder / "checkpoints/last.pt").read_bytes() == (good_epoch / "checkpoints/last.pt").read_bytes()


def test_run_resumes_after_divergence_with_a_lower_learning_rate(
    data: Data, good_epoch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RebarError):
        train_here(*resumed_command(data, good_epoch, folder, "--freeze-lr", "1e39"))
    train_here(*data.training_command(folder, "--epochs", "2", "--freeze-lr", "0.01"))
    assert "resuming after epoch 1" in capsys.readouterr().out
    assert status(folder) == ("finished", "", 0)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process write no file larger than ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_checkpoint_larger_than_the_free_space(data: Data, good_epoch: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = resumed_command(data, good_epoch, folder, "--every-steps", "4")
    with largest_file(1 << 20), pytest.raises(RebarError, match=r"checkpoints/last\.pt") as error:  # it has 2 MB
        train_here(*command)
    assert error.value.code == "checkpoint-not-writable"
    assert status(folder)[0] == "failed"
    assert 23 <= max(record["step"] for record in read_events(folder, "step")) < 28  # reported before the next save
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.pt"]
    assert (folder / "checkpoints/last.pt").read_bytes() == (good_epoch / "checkpoints/last.pt").read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    with mounted_tmpfs(tmp_path / "disk", megabytes=12) as disk:
        yield disk


def test_full_disk_at_the_last_record_of_the_log(data: Data, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_disk / "run"
    command = data.training_command(folder, "--epochs", "1")

    def finish_on_a_full_disk(run: Any) -> None:
        log = folder / "log.jsonl"
        blocks = -(-log.stat().st_size // 4096)
        log.write_bytes(log.read_bytes()[:-1].ljust(4096 * blocks - 1) + b"\n")  # its last block is full
        fill(small_disk)
        publish.finish(run)

    with monkeypatch.context() as patch:
        patch.setattr(train_imagenet, "finish", finish_on_a_full_disk)
        with pytest.raises(RebarError, match="Training is complete and its checkpoint is saved") as error:
            train_here(*command)
    assert error.value.code == "disk-full"
    state, reason, exit_code = status(folder)
    assert (state, exit_code) == ("failed", 1)
    assert "the disk is full" in reason
    assert read_checkpoint(folder / "checkpoints/last.pt")["epoch"] == 1
    (small_disk / "other_data").unlink()
    train_here(*command)
    assert status(folder) == ("finished", "", 0)
    assert len(read_events(folder, "end")) == len(read_events(folder, "epoch")) == 1


def test_full_disk_during_training(data: Data, small_disk: Path) -> None:
    folder = small_disk / "run"
    train_here(*data.training_command(folder, "--epochs", "1"))
    fill(small_disk)
    longer = data.training_command(folder, "--epochs", "2")
    with pytest.raises(RebarError) as error:
        train_here(*longer)
    assert error.value.code == "disk-full"
    (small_disk / "other_data").unlink()
    train_here(*longer)
    assert status(folder) == ("finished", "", 0)


# A disk on which the second checkpoint never gets beyond its first half.
SLOW_DISK = """
import io, sys, time
sys.path.insert(0, {repository!r})
import torch, train_imagenet
original, saves = torch.save, []
def save(content, file):
    buffer = io.BytesIO()
    original(content, buffer)
    saves.append(content)
    if len(saves) == 1:
        file.write(buffer.getvalue())
        return
    file.write(buffer.getvalue()[: buffer.tell() // 2])
    file.flush()
    time.sleep(300)
torch.save = save
train_imagenet.command()
"""


def test_kill_while_a_checkpoint_is_written_leaves_the_previous_one(
    data: Data, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, script = tmp_path / "run", tmp_path / "slow_disk.py"
    command = data.training_command(folder, "--every-steps", "8")
    script.write_text(SLOW_DISK.format(repository=str(REPOSITORY)))

    def kill(pid: int) -> None:  # at step 19, while the second checkpoint, of step 16, is being written
        checkpoints = folder / "checkpoints"
        (partial,) = checkpoints.glob(".last.pt.partial-*")
        while partial.stat().st_size < (checkpoints / "last.pt").stat().st_size // 2:
            time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)

    assert interrupt([script, *command[1:]], folder, 19, kill) == -signal.SIGKILL
    assert read_checkpoint(folder / "checkpoints/last.pt")["meter"]["steps"] == 8
    assert status(folder)[0] == "running"
    train_here(*command)
    assert "after 8 of 20 steps of epoch 1" in capsys.readouterr().out
    assert_same_run(folder, finished_run)
    assert not list((folder / "checkpoints").glob(".*"))
