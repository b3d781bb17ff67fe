"""Tests of rebar.training.run: when a run saves and stops."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rebar.config import parse_config
from rebar.reporting.run_folder import RunFolder
from rebar.training import checkpoint
from rebar.training.checkpoint import CheckpointError, read_checkpoint
from rebar.training.config import TrainConfig
from rebar.training.distributed import World
from rebar.training.run import Run
from rebar.training.stopping import Interrupted, StopReason, StopRequest
from tests.training.test_state import make_state


class FakeLoader:
    """The attributes of a Loader that saving needs."""

    corrupt_samples: ClassVar[dict[int, str]] = {}

    def __len__(self) -> int:
        return 10

    def state_dict(self, batches_used: int) -> dict[str, Any]:
        return {"samples": batches_used}


@pytest.fixture
def request_() -> StopRequest:
    return StopRequest()


@pytest.fixture
def run(tmp_path: Path, world: World, request_: StopRequest) -> Run:
    """A run that saves every five steps."""
    config = parse_config(TrainConfig, ["--every-steps=5"], description="test")
    folder, state, loader = RunFolder(tmp_path), make_state(), FakeLoader()
    folder.prepare(from_scratch=True)
    created = Run(config, world, folder, state, state.model, loader, loader)  # type: ignore[arg-type]
    created.control.start(request_)
    return created


def train(run: Run, steps: int) -> None:
    for _ in range(steps):
        run.state.meter.end_step()
        run.after_step()


def saved_steps(run: Run) -> int:
    """Return the steps of the last checkpoint."""
    steps: int = read_checkpoint(run.folder.last_checkpoint)["meter"]["steps"]
    return steps


class SlowDisk:
    """Replaces the writing of checkpoints: it waits for ``may_write``, and fails if ``fails`` is set."""

    def __init__(self, save: Callable[..., None]) -> None:
        self._save = save
        self.may_write = threading.Event()
        self.fails = False
        self.written = 0

    def __call__(self, path: Path, content: Any) -> None:
        assert self.may_write.wait(timeout=30)
        if self.fails:
            raise CheckpointError("no space", code="checkpoint-not-writable")
        self._save(path, content)
        self.written += 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    slow = SlowDisk(checkpoint.save_checkpoint)
    monkeypatch.setattr(checkpoint, "save_checkpoint", slow)
    return slow


def test_after_step_saves_every_n_steps(run: Run) -> None:
    train(run, 4)
    run.wait_until_saved()
    assert not run.folder.last_checkpoint.exists()
    train(run, 3)
    run.wait_until_saved()
    assert saved_steps(run) == 5


def test_training_continues_while_a_checkpoint_is_written(run: Run, disk: SlowDisk) -> None:
    train(run, 9)
    assert disk.written == 0
    disk.may_write.set()
    run.wait_until_saved()
    assert saved_steps(run) == 5  # not the state of step 9, which was reached before the write


def test_save_checkpoint_waits_for_the_previous_write(run: Run, disk: SlowDisk) -> None:
    run.save_checkpoint()
    second = threading.Thread(target=run.save_checkpoint)
    second.start()
    second.join(timeout=0.2)
    assert second.is_alive()
    disk.may_write.set()
    second.join(timeout=30)
    run.wait_until_saved()
    assert disk.written == 2


@pytest.mark.parametrize("in_evaluation", [False, True])
def test_stop_request_raises_once_the_checkpoint_is_written(
    in_evaluation: bool, run: Run, request_: StopRequest, disk: SlowDisk
) -> None:
    request_.set(StopReason.SIGTERM)
    threading.Timer(0.2, disk.may_write.set).start()
    with pytest.raises(Interrupted, match="SIGTERM"):
        list(run.interruptible("abc")) if in_evaluation else train(run, 1)
    assert disk.written == 1


def test_interruptible_stops_between_batches(run: Run, request_: StopRequest) -> None:
    batches = run.interruptible("abc")
    assert next(batches) == "a"
    request_.set(StopReason.SPOT_NOTICE)
    with pytest.raises(Interrupted, match="EC2's spot interruption notice"):
        next(batches)


def test_failed_write_is_raised_once_after_a_later_step(run: Run, disk: SlowDisk) -> None:
    def continue_until(deadline: float) -> None:
        while time.monotonic() < deadline:
            run.after_step()

    disk.fails = True
    train(run, 5)
    run.state.meter.end_step()  # no checkpoint is due after step 6
    disk.may_write.set()
    with pytest.raises(CheckpointError):
        continue_until(time.monotonic() + 30)
    run.wait_until_saved()
    assert disk.written == 0


@pytest.mark.parametrize("how", ["the next save", "an interruption", "the end"])
def test_failed_write_is_never_lost(how: str, run: Run, request_: StopRequest, disk: SlowDisk) -> None:
    disk.fails = True
    disk.may_write.set()
    if how == "an interruption":
        request_.set(StopReason.SIGTERM)
    else:
        run.save_checkpoint()
    raised_by: dict[str, Callable[[], object]] = {
        "the next save": run.save_checkpoint,
        "an interruption": run.after_step,
        "the end": run.wait_until_saved,
    }
    with pytest.raises(CheckpointError):
        raised_by[how]()


def test_uploader_is_called_after_each_write(run: Run) -> None:
    uploaded: list[int] = []
    run.writer.on_written = lambda progress: uploaded.append(progress.step)
    train(run, 5)
    run.wait_until_saved()
    assert uploaded == [5]
