"""What became of the pictures of a writing: counted, and the bad ones named."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rebar.beton.encoder import Outcome
from rebar.beton.estimate import Estimate

LISTED = 100
"""Names kept of each kind of odd picture; of bad pictures all are."""


@dataclass(frozen=True)
class WriteReport:
    """What was written."""

    path: Path
    num_samples: int
    bytes: int
    """Size of the file."""
    picture_bytes: int
    """What of it is pictures."""
    seconds: float
    num_encoded: int
    """Pictures worked on in these seconds: fewer than written where an earlier writing was gone on with."""
    class_counts: np.ndarray
    """int64, the number of samples of every class."""
    expected: Estimate
    """What was to be expected before it began."""
    tally: "Tally"


@dataclass
class Tally:
    """Pictures by what became of them; the names are in the order of writing."""

    passed_through: int = 0
    encoded: int = 0
    repaired: list[Sequence[str]] = field(default_factory=list)
    """Name and reason."""
    skipped: list[Sequence[str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Of each kind of odd picture."""
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, outcome: Outcome) -> None:
        """Count a picture."""
        if outcome.picture is None:
            self.skipped.append((name, outcome.fault))
            return
        if outcome.fault:
            self.repaired.append((name, outcome.fault))
        if outcome.picture.passed_through:
            self.passed_through += 1
        else:
            self.encoded += 1
        for kind in outcome.picture.oddities:
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self.names.setdefault(kind, []).append(name)
            del self.names[kind][LISTED:]

    def join(self, later: "Tally") -> None:
        """Count what another tally counted of later pictures."""
        self.passed_through += later.passed_through
        self.encoded += later.encoded
        self.repaired += later.repaired
        self.skipped += later.skipped
        for kind, count in later.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            self.names[kind] = [*self.names.get(kind, []), *later.names[kind]][:LISTED]

    def to_json(self) -> str:
        """The whole report as text, the same for the same source and settings."""
        bad = {
            key: [{"name": name, "reason": reason} for name, reason in pictures]
            for key, pictures in (("repaired", self.repaired), ("skipped", self.skipped))
        }
        content = {
            "passed_through": self.passed_through,
            "encoded": self.encoded,
            "num_repaired": len(self.repaired),
            "num_skipped": len(self.skipped),
            **bad,
            "kinds": {kind: {"count": self.counts[kind], "names": self.names[kind]} for kind in sorted(self.counts)},
        }
        return json.dumps(content, indent=1) + "\n"


def report_path(beton_path: Path | str) -> Path:
    """Where the report on a .beton file's writing lies."""
    path = Path(beton_path)
    return path.with_name(path.name + ".report.json")
