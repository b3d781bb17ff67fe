"""``status.json`` in a run folder: the state of the run, for scripts that decide whether to restart it.

torchrun replaces every worker's exit status with 1; this file contains the original one.
"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rebar.storage.files import atomic_write

State = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True)
class RunStatus:
    """The state of a run. ``interrupted``: saved, the same command resumes. ``failed``: ``reason`` is the error."""

    state: State
    reason: str
    epoch: int
    """Complete epochs."""
    step: int
    """Optimizer steps since the start of the run."""
    exit_code: int | None
    """The exit status of the process; None while it runs."""
    position: float | None = field(default=None, compare=False)
    """Epochs, including the completed fraction of the current one; None in files of earlier versions."""
    time: float = field(default=0.0, compare=False)
    """When the file was written, in seconds since 1970."""

    @property
    def has_ended(self) -> bool:
        """Whether training has ended and all its files are written."""
        return self.state != "running"


def write_status(path: Path, status: RunStatus) -> None:
    """Replace the file. Raises RebarError if it cannot be written."""
    process = {"time": round(time.time(), 3), "host": socket.gethostname(), "pid": os.getpid()}
    with atomic_write(path) as (file,):
        file.write(json.dumps({**asdict(status), **process}, indent=2).encode() + b"\n")


def read_status(path: Path) -> RunStatus | None:
    """Return the contents of the file; None if it does not exist or is not valid."""
    try:
        record = json.loads(path.read_text())
        return RunStatus(
            **{name: record[name] for name in ("state", "reason", "epoch", "step", "exit_code")},
            position=record.get("position"),
            time=record["time"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
