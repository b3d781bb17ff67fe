"""``status.json``: how a run stands, for scripts that decide whether to start it again.

torchrun turns every worker's exit status into 1; this file says what it was.

The folder of a run: which files it holds, and when it may be written to.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

from rebar.errors import RebarError
from rebar.storage.atomic_write import atomic_write
from rebar.storage.run_manifest import ORIGIN

State = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True)
class RunStatus:
    """``interrupted``: everything is saved, the same command goes on. ``failed``: ``reason`` says why."""

    state: State
    reason: str
    epoch: int
    """Complete epochs."""
    step: int
    """Steps of the whole run."""
    exit_code: int | None
    """What the process exits with; None while it runs."""


def write_status(path: Path, status: RunStatus) -> None:
    """Replace the file. Raises RebarError where it cannot be written."""
    record = {**asdict(status), "time": round(time.time(), 3), "host": socket.gethostname(), "pid": os.getpid()}
    with atomic_write(path) as (file,):
        file.write(json.dumps(record, indent=2).encode() + b"\n")


def read_status(path: Path) -> RunStatus | None:
    """What the file says; None where there is none, or none that can be read."""
    try:
        record = json.loads(path.read_text())
        return RunStatus(**{name: record[name] for name in RunStatus.__annotations__})
    except (OSError, ValueError, KeyError, TypeError):
        return None


_PATIENCE = 20.0


@dataclass(frozen=True)
class RunFolder:
    """Configuration, log, status, checkpoints, plot and report under one path."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def plot(self) -> Path:
        return self.path / "plot.png"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def wandb_id(self) -> Path:
        return self.path / "wandb_id.txt"

    @property
    def origin(self) -> Path:
        """How the run began, where that was not by itself."""
        return self.path / ORIGIN

    def _earlier_run(self) -> list[Path]:
        files = [self.config, self.log, self.plot, self.report, self.status, self.wandb_id, self.origin]
        return [*(file for file in files if file.exists()), *self.last_checkpoint.parent.glob("*.pt")]

    def check_can_be_written(self) -> None:
        """Raise RebarError where the folder cannot be made or written to; makes nothing."""
        nearest = next(path for path in (self.path, *self.path.resolve().parents) if path.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            reason = "may not be written to" if nearest.is_dir() else "is not a folder"
            raise RebarError(f"logging.folder {self.path} cannot be written to: {nearest} {reason}")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other runs out of the folder meanwhile; a killed process holds it no longer.

        Raises RebarError where another run is writing to it.
        """
        self._make()
        with self._lock.open("w") as file:
            _lock_within(file, seconds=_PATIENCE, folder=self.path)
            yield

    def is_in_use(self) -> bool:
        """Whether a run is writing to the folder now."""
        try:
            with self._lock.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no run was ever here, or a file system without locks
            return False
        return False

    def _make(self) -> None:
        try:
            self.last_checkpoint.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RebarError(f"logging.folder {self.path} cannot be written to: {error.strerror}") from None

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    def checkpoint_to_resume(self, resume: str) -> Path | None:
        """The file that ``resume`` ('auto', 'none' or a path) means, or None to start afresh."""
        if resume == "none":
            return None
        if resume != "auto":
            return Path(resume)
        return self.last_checkpoint if self.last_checkpoint.exists() else None

    def check_free(self, resume: str, *, overwrite: bool) -> None:
        """Raise RebarError where starting afresh would destroy an earlier run unasked."""
        if resume == "none" and not overwrite and self.last_checkpoint.exists():
            raise RebarError(
                f"{self.path} holds an earlier run with a checkpoint: leave out --resume none to go on with it, "
                "add --overwrite to delete it, or choose another --logging.folder"
            )

    def prepare(self, *, afresh: bool) -> None:
        """Make the folder; starting afresh, remove an earlier run's files (and no others)."""
        self._make()
        try:
            if afresh:
                for file in self._earlier_run():
                    file.unlink()
            for leftover in self.last_checkpoint.parent.glob(".*.partial-*"):  # of a run killed while saving
                leftover.unlink()
        except OSError as error:
            raise RebarError(f"logging.folder {self.path} cannot be written to: {error.strerror}") from None


def _lock_within(file: IO[str], *, seconds: float, folder: Path) -> None:
    """Lock the file; a run that was killed a moment ago may still be saving, so wait a little."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RebarError(
                    f"{folder} is in use by another run: wait for it, or choose another --logging.folder"
                ) from None
            time.sleep(0.1)
        except OSError:
            return  # a file system without locks
        else:
            return
