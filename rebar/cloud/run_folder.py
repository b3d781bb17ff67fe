"""What a run's folder tells of it, read without training's own packages."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rebar.run_manifest import Progress


@dataclass(frozen=True)
class Status:
    """``status.json``; ``time`` in seconds since 1970, ``state`` empty where there is no such file."""

    state: str = ""
    reason: str = ""
    epoch: int = 0
    step: int = 0
    time: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether training says that it has left, with everything saved that it will save."""
        return self.state in ("finished", "interrupted", "failed")


def status_of(folder: Path) -> Status:
    """How the run stands; what cannot be read says nothing."""
    try:
        record = json.loads((folder / "status.json").read_text())
        return Status(**{name: record[name] for name in Status.__annotations__})
    except (OSError, ValueError, KeyError, TypeError):
        return Status()


def progress_of(folder: Path) -> Progress:
    """How far the run is: as its status says, which while it trains is where it began."""
    status = status_of(folder)
    steps_per_epoch = _steps_per_epoch(folder)
    position = status.step / steps_per_epoch if steps_per_epoch else float(status.epoch)
    return Progress(status.epoch, status.step, position)


def _steps_per_epoch(folder: Path) -> float:
    """From a step's record, which has its number and the epoch by its share; 0 where there is none."""
    with suppress(OSError), (folder / "log.jsonl").open() as log:
        for line in log:
            with suppress(ValueError, KeyError, TypeError, ZeroDivisionError):
                record = json.loads(line)
                if record["event"] == "step" and record["step"]:
                    return float(record["step"] / record["epoch"])
    return 0.0
