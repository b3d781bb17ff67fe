"""The folder of a run: its files and its lock."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rebar.cli import warn
from rebar.errors import RebarError
from rebar.storage.files import file_lock
from rebar.storage.run_store import ORIGIN
from rebar.storage.s3 import keep_existing

LOCK_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's configuration, log, status, checkpoints, plot and report."""

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
        """The file that records how the run started; see :mod:`rebar.training.resume`."""
        return self.path / ORIGIN

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    def _run_files(self) -> list[Path]:
        files = [self.config, self.log, self.plot, self.report, self.status, self.wandb_id, self.origin]
        return [*(file for file in files if file.exists()), *self.checkpoints()]

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints in the folder: ``last.pt``, then the others, newest first."""
        found = self.last_checkpoint.parent.glob("*.pt")
        return sorted(found, key=lambda path: (path != self.last_checkpoint, -path.stat().st_mtime, path.name))

    def _not_writable(self, reason: str | None) -> RebarError:
        return RebarError(
            f"logging.folder: {self.path} is not writable: {reason}. Choose another folder.",
            code="run-folder-not-writable",
        )

    def check_writable(self) -> None:
        """Raise RebarError if the folder cannot be created or written to. Creates nothing."""
        nearest = next(path for path in (self.path, *self.path.resolve().parents) if path.exists())
        if not nearest.is_dir():
            raise self._not_writable(f"{nearest} is not a folder")
        if not os.access(nearest, os.W_OK):
            raise self._not_writable(f"no permission to write to {nearest}")

    @contextmanager
    def locked(self, timeout: float = LOCK_TIMEOUT_SECONDS) -> Iterator[None]:
        """Lock the folder against other runs. The operating system releases the lock if the process is killed.

        Waits up to ``timeout`` seconds, since a run that is being stopped may still be saving. Raises RebarError if
        another run still holds the lock.
        """
        self._create()
        reason = "another run is using this folder. Wait until it ends, or choose another --logging.folder."
        with ExitStack() as stack:
            try:
                stack.enter_context(file_lock(self._lock, reason, timeout=timeout))
            except RebarError as error:
                if error.code == "file-locked":
                    raise RebarError(f"{self.path}: {reason}", code="run-folder-locked") from None
                raise
            yield

    def is_locked(self) -> bool:
        """Return whether a run is using the folder now."""
        try:
            with file_lock(self._lock, ""):
                return False
        except RebarError as error:
            return error.code == "file-locked"

    def _create(self) -> None:
        try:
            self.last_checkpoint.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(error.strerror) from None

    def checkpoint_to_resume(self, resume: str) -> Path | None:
        """Return the checkpoint that ``resume`` ('auto', 'none' or a path) selects, or None to start from scratch."""
        if resume == "none":
            return None
        if resume != "auto":
            return Path(resume)
        newest = next(iter(self.checkpoints()), None)
        if newest not in (None, self.last_checkpoint):
            warn(f"{self.last_checkpoint} is missing: resuming from {newest}, the newest checkpoint in the folder")
        return newest

    def check_overwrite(self, resume: str, *, overwrite: bool) -> None:
        """Raise RebarError if starting from scratch would delete an earlier run without ``overwrite``."""
        if resume == "none" and not overwrite and self.checkpoints():
            raise RebarError(
                f"{self.path}: the folder contains an earlier run with a checkpoint. Omit --resume none to resume it, "
                "add --overwrite to delete it, or choose another --logging.folder.",
                code="run-exists",
            )

    def prepare(self, *, from_scratch: bool) -> None:
        """Create the folder. ``from_scratch`` deletes the files of an earlier run, but no other files.

        The log of a run without checkpoints, which needs no ``--overwrite``, is renamed if it has an epoch.
        """
        self._create()
        try:
            if from_scratch:
                if not self.checkpoints() and self.log.is_file() and b'"event": "epoch"' in self.log.read_bytes():
                    keep_existing(self.log, "")
                for file in self._run_files():
                    file.unlink()
            for leftover in self.last_checkpoint.parent.glob(".*.partial-*"):  # from a run killed while saving
                leftover.unlink()
        except OSError as error:
            raise self._not_writable(error.strerror) from None
