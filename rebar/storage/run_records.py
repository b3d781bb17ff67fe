"""JSON files of a run: ``status.json`` (its state), ``origin.json`` (how it started), ``run.json`` (what S3 has of it).

Scripts decide by ``status.json`` whether to restart a run: torchrun replaces every worker's exit status with 1.
"""

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rebar.storage.files import atomic_write

MANIFEST = "run.json"
ORIGIN = "origin.json"
LAST, PREVIOUS = "last.pt", "previous.pt"
RECORDS = ("config.yaml", "log.jsonl", "status.json", "wandb_id.txt", "plot.png", "report.html", "weights.*", ORIGIN)
"""The files of a run's folder that are uploaded in addition to its checkpoints, as glob patterns."""
RECORDS_TO_RESUME = ("log.jsonl", "wandb_id.txt")
"""The records that another machine needs to resume, in addition to the origin."""
FORMAT, VERSION = "rebar-run", 1


@dataclass(frozen=True)
class Progress:
    """The training progress of a checkpoint."""

    epoch: int
    """Complete epochs."""
    step: int
    """Optimizer steps since the start of the run."""
    position: float
    """Epochs, including the completed fraction of the current one."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """An uploaded checkpoint: the name of its object below the run's prefix, its SHA-256 and its size in bytes."""

    object: str
    sha256: str
    bytes: int

    @classmethod
    def of(cls, sha256: str, size: int) -> "StoredCheckpoint":
        """Return the entry of a checkpoint. Its object is named after its SHA-256."""
        return cls(f"checkpoints/{sha256[:16]}.pt", sha256, size)


@dataclass(frozen=True)
class Origin:
    """How a run was started with ``--resume none`` or ``--resume FILE``, so that the same command resumes it later."""

    resume: str
    """The value of --resume: the absolute path of a checkpoint, or 'none'."""
    sha256: str = ""
    """SHA-256 of that checkpoint."""
    agent: str = ""
    """The torchrun process that started the run."""
    launch: str = ""
    """The run id that the torchruns of several nodes share."""
    replaced: str = ""
    """SHA-256 of the last checkpoint of the uploaded run that this run replaces."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any] | None) -> "Origin | None":
        """Return the origin of a JSON object. Raises KeyError or TypeError if it is not valid."""
        return None if record is None else cls(**{name: str(record[name]) for name in cls.__annotations__})


def read_origin(path: Path) -> Origin | None:
    """Return the contents of ``origin.json``; None if it does not exist or is not valid."""
    try:
        return Origin.from_record(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_origin(path: Path, origin: Origin | None) -> None:
    """Write ``origin.json``, or remove it for None. Raises RebarError if it cannot be written."""
    if origin is None:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as (file,):
        file.write(json.dumps(asdict(origin), indent=2).encode() + b"\n")


@dataclass(frozen=True)
class RunManifest:
    """The progress of an uploaded run, its checkpoints by file name, and the host that uploaded them."""

    progress: Progress
    checkpoints: Mapping[str, StoredCheckpoint] = field(default_factory=dict)
    host: str = ""
    origin: Origin | None = None
    """None for a run that was started with ``--resume auto``."""

    @property
    def last(self) -> StoredCheckpoint:
        """The newest checkpoint."""
        return self.checkpoints[LAST]

    def to_json(self) -> bytes:
        """Return the contents of ``run.json``, with the current time."""
        header = {"format": FORMAT, "version": VERSION, "time": round(time.time(), 3), "host": self.host}
        checkpoints = {name: asdict(stored) for name, stored in self.checkpoints.items()}
        origin = {} if self.origin is None else {"origin": asdict(self.origin)}
        record = {**header, **asdict(self.progress), "checkpoints": checkpoints, **origin}
        return json.dumps(record, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes) -> "RunManifest":
        """Parse ``run.json``. Raises ValueError if it is damaged, or has another version."""
        try:
            return cls._from_record(json.loads(content))
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"not a {MANIFEST}") from None

    @classmethod
    def _from_record(cls, record: Mapping[str, Any]) -> "RunManifest":
        if (record["format"], record["version"]) != (FORMAT, VERSION):
            raise ValueError("version")
        checkpoints = {name: StoredCheckpoint(**stored) for name, stored in record["checkpoints"].items()}
        if LAST not in checkpoints or any("/" in name for name in checkpoints):
            raise ValueError("names")
        progress = Progress(record["epoch"], record["step"], record["position"])
        return cls(progress, checkpoints, record["host"], Origin.from_record(record.get("origin")))


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
