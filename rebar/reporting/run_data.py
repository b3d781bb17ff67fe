"""The data of a run, read from its folder, for plots and reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebar.errors import RebarError
from rebar.reporting.log import Record, latest_records, read_log
from rebar.reporting.run_folder import RunFolder
from rebar.storage.run_status import read_status


@dataclass(frozen=True)
class Series:
    """The points of a line; ``faint`` lines are drawn in the background."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False


@dataclass(frozen=True)
class RunData:
    """Log, configuration and status of a run."""

    name: str
    epochs: list[Record]
    steps: list[Record]
    start: Record
    config: str
    state: str
    end: Record
    """The ``end`` record, unless the run was resumed after it."""

    @property
    def last(self) -> Record:
        """The last evaluated epoch, or the last epoch if none was evaluated, or an empty record."""
        evaluated = [epoch for epoch in self.epochs if epoch.get("val/top1") is not None]
        return (evaluated or self.epochs or [{}])[-1]

    def series(self, name: str, label: str, scale: float = 1) -> Series:
        """Return a metric at the end of each epoch."""
        points = [(e["epoch"] + 1, e[name] * scale) for e in self.epochs if e.get(name) is not None]
        return Series(label, [x for x, _ in points], [y for _, y in points])

    def step_series(self, name: str, label: str, faint: bool = False) -> Series:
        """Return a metric at the logged steps."""
        steps = [step for step in self.steps if step.get(name) is not None]
        return Series(label, [step["epoch"] for step in steps], [step[name] for step in steps], faint)


def read_run(folder: Path) -> RunData:
    """Read the folder of a finished or unfinished run. Raises RebarError if it has no log."""
    files = RunFolder(folder)
    if not files.log.is_file():
        raise RebarError(
            f"{folder}: not a run folder, because it has no log.jsonl. Give the --logging.folder of a run.",
            code="run-not-found",
        )
    records = read_log(files.log)
    status = read_status(files.status)
    starts = [record for record in records if record["event"] == "start"]
    state = "" if status is None else status.state + (f": {status.reason}" if status.reason else "")
    return RunData(
        name=folder.resolve().name,
        epochs=latest_records(records, "epoch", "epoch"),
        steps=latest_records(records, "step", "step"),
        start=starts[-1] if starts else {},
        config=files.config.read_text() if files.config.is_file() else "",
        state=state,
        end=records[-1] if records and records[-1]["event"] == "end" else {},
    )
