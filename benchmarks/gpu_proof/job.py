"""The job of a part: its settings, deadline and recorded results."""

import dataclasses
import datetime
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
BENCHMARKS = REPOSITORY / "benchmarks"
sys.path[:0] = [str(REPOSITORY), str(BENCHMARKS)]


@dataclasses.dataclass
class Job:
    """One part of a run. ``out``: folder for results, ``work``: folder with data, ``deadline``: in time.monotonic()."""

    part: str
    out: Path
    work: Path
    rehearse: bool
    deadline: float
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.rehearse else "cuda")

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def add(self, **row: Any) -> None:
        """Record a row, print it, and write the part's JSON again."""
        self.rows.append(row)
        print(json.dumps(row, default=str), flush=True)
        self.write("running")

    def skip(self, case: str) -> None:
        """Record that there was no time left for a case."""
        self.note(not_measured=[*self.notes.get("not_measured", []), case])

    def note(self, **notes: Any) -> None:
        """Record values that do not belong to a row."""
        self.notes.update(notes)
        print(json.dumps(notes, default=str), flush=True)
        self.write("running")

    def attempt(self, work: Callable[[], None], **case: Any) -> None:
        """Run one case. An exception becomes a row, so that the next case still runs."""
        try:
            work()
        except Exception as error:
            traceback.print_exc()
            self.add(**case, error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300])
            if not self.rehearse:
                torch.cuda.empty_cache()

    def write(self, status: str) -> None:
        """Write ``<part>.json``."""
        write_json(
            self.out / f"{self.part}.json",
            {
                "part": self.part,
                "command": command_of(self.part, rehearse=self.rehearse),
                "date": datetime.date.today().isoformat(),
                "rehearsal": self.rehearse,
                "status": status,
                **self.notes,
                "rows": self.rows,
            },
        )

    def wait_for(self, name: str) -> Path:
        """Return a path in the work folder, once prepare.py has completed it. Raises TimeoutError."""
        while not (self.work / f"{name}.ready").exists():
            if self.seconds_left < 5:
                raise TimeoutError(f"{name} was not prepared in time; see prepare.log")
            time.sleep(0.2)
        return self.work / name


def command_of(part: str, *, rehearse: bool) -> str:
    """Return the command that repeats one part."""
    return f"python -m benchmarks.gpu_proof --out DIR --only {part}" + (" --rehearse" if rehearse else "")


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")
    os.replace(temporary, path)


def percentile(values: list[float], fraction: float) -> float:
    """Return the value below which ``fraction`` of the values are."""
    return sorted(values)[min(int(fraction * len(values)), len(values) - 1)]
