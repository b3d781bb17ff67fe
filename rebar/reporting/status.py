"""``status.json``: how a run stands, for scripts that decide whether to start it again.

torchrun turns every worker's exit status into 1; this file says what it was.
"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rebar.replacing import replacing

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
    with replacing(path) as (file,):
        file.write(json.dumps(record, indent=2).encode() + b"\n")


def read_status(path: Path) -> RunStatus | None:
    """What the file says; None where there is none, or none that can be read."""
    try:
        record = json.loads(path.read_text())
        return RunStatus(**{name: record[name] for name in RunStatus.__annotations__})
    except (OSError, ValueError, KeyError, TypeError):
        return None
