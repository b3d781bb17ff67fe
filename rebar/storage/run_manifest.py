"""``run.json``: which checkpoints of a run a bucket holds whole, and how far they are.

It lies in the run's place, ``s3://bucket/prefix/RUN``, and is replaced after all that it names is there. Training
writes and reads it, and so does ``python -m rebar.aws``, which knows no torch.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "run.json"
ORIGIN = "origin.json"
LAST, PREVIOUS = "last.pt", "previous.pt"
RECORDS = ("config.yaml", "log.jsonl", "status.json", "wandb_id.txt", "plot.png", "report.html", "weights.*", ORIGIN)
"""What is kept of a run besides its checkpoints; patterns of names in its folder."""
RECORDS_TO_GO_ON_WITH = ("log.jsonl", "wandb_id.txt")
"""Those that another machine needs, besides how the run began."""
FORMAT, VERSION = "rebar-run", 1


@dataclass(frozen=True)
class Progress:
    """How far a checkpoint is."""

    epoch: int
    """Complete epochs."""
    step: int
    """Steps of the whole run."""
    position: float
    """Epochs, the one under way by its share."""


@dataclass(frozen=True)
class Stored:
    """A checkpoint's object, by its name within the run's place."""

    object: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Origin:
    """How a run began that was told to begin anew: kept in its folder, for the same command to go on with it."""

    resume: str
    """The setting: a checkpoint's path, absolute, or 'none'."""
    sha256: str = ""
    """The checkpoint's."""
    agent: str = ""
    """The torchrun process that started it."""
    launch: str = ""
    """What several machines' torchruns call their common run."""
    replaced: str = ""
    """SHA-256 of the last checkpoint of the uploaded run that it was to replace."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any] | None) -> "Origin | None":
        """Raises KeyError or TypeError where it is no such record."""
        return None if record is None else cls(**{name: str(record[name]) for name in cls.__annotations__})


def read_origin(path: Path) -> Origin | None:
    """What the file says; None where there is none, or none that can be read."""
    try:
        return Origin.from_record(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class RunManifest:
    """How far the run is, its checkpoints by their names in the run's folder, and the machine that stored them."""

    progress: Progress
    checkpoints: Mapping[str, Stored] = field(default_factory=dict)
    host: str = ""
    origin: Origin | None = None
    """None for a run that began by itself."""

    @property
    def last(self) -> Stored:
        """The newest checkpoint."""
        return self.checkpoints[LAST]

    def to_json(self) -> bytes:
        """The file, written now."""
        about = {"format": FORMAT, "version": VERSION, "time": round(time.time(), 3), "host": self.host}
        checkpoints = {name: asdict(stored) for name, stored in self.checkpoints.items()}
        origin = {} if self.origin is None else {"origin": asdict(self.origin)}
        record = {**about, **asdict(self.progress), "checkpoints": checkpoints, **origin}
        return json.dumps(record, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes) -> "RunManifest":
        """Raises ValueError where the file is damaged, or of another version."""
        try:
            return cls._from_record(json.loads(content))
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"no {MANIFEST}") from None

    @classmethod
    def _from_record(cls, record: Mapping[str, Any]) -> "RunManifest":
        if (record["format"], record["version"]) != (FORMAT, VERSION):
            raise ValueError("version")
        checkpoints = {name: Stored(**stored) for name, stored in record["checkpoints"].items()}
        if LAST not in checkpoints or any("/" in name for name in checkpoints):
            raise ValueError("names")
        progress = Progress(record["epoch"], record["step"], record["position"])
        return cls(progress, checkpoints, record["host"], Origin.from_record(record.get("origin")))
