"""``run.json``: which checkpoints of a run a bucket holds whole, and how far they are.

It lies in the run's place, ``s3://bucket/prefix/RUN``, and is replaced after all that it names is there. Training
writes and reads it, and so does ``python -m rebar.cloud``, which knows no torch.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MANIFEST = "run.json"
LAST, PREVIOUS = "last.pt", "previous.pt"
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
class RunManifest:
    """How far the run is, its checkpoints by their names in the run's folder, and the machine that stored them."""

    progress: Progress
    checkpoints: Mapping[str, Stored] = field(default_factory=dict)
    host: str = ""

    @property
    def last(self) -> Stored:
        """The newest checkpoint."""
        return self.checkpoints[LAST]

    def to_json(self) -> bytes:
        """The file, written now."""
        about = {"format": FORMAT, "version": VERSION, "time": round(time.time(), 3), "host": self.host}
        checkpoints = {name: asdict(stored) for name, stored in self.checkpoints.items()}
        return json.dumps({**about, **asdict(self.progress), "checkpoints": checkpoints}, indent=2).encode() + b"\n"

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
        return cls(Progress(record["epoch"], record["step"], record["position"]), checkpoints, record["host"])
