"""The log of a run: one JSON object per line in ``log.jsonl``, and optionally Weights & Biases.

Every record has an ``event`` (start, step, epoch or end) and a ``time`` in seconds since 1970. Metrics have the same
names in both, such as ``train/loss``. NaN and infinite values are null.
"""

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rebar.config import option
from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder
from rebar.reporting.wandb_log import start_wandb
from rebar.storage.files import atomic_write, write_error
from rebar.storage.run_store import read_status

Record = dict[str, Any]


@dataclass(frozen=True)
class LoggingConfig:
    """Logging."""

    folder: str = option(
        "", help="run folder; default runs/NAME, where NAME is the config file's stem", metavar="FOLDER"
    )
    log_level: int = option(1, help="0: evaluate and report after the last epoch only; 1: after each epoch", minimum=0)
    log_every: int = option(50, help="steps between records of the training loss", minimum=1)
    wandb: bool = option(False, help="also log to Weights & Biases (WANDB_MODE=offline works)")
    wandb_project: str = option("", help="Weights & Biases project; implies wandb; default: WANDB_PROJECT or rebar")
    wandb_name: str = option(
        "", help="Weights & Biases run name; implies wandb; default: WANDB_NAME or the name of the run folder"
    )
    wandb_tags: str = option("", help="Weights & Biases tags, separated by commas; implies wandb", metavar="A,B")
    upload: str = option(
        "",
        help="s3://bucket/prefix: upload checkpoints and log to the run's folder there, and resume from it",
        metavar="URL",
    )
    hf_repo: str = option(
        "",
        help="owner/name: publish weights, model card, report and config there at the end; token: HF_TOKEN",
        metavar="REPO",
    )
    show_progress: bool = option(True, help="progress bars")


class RunLog:
    """Appends records to the log. With ``path=None``, as on ranks other than 0, it writes nothing."""

    def __init__(self, path: Path | None, wandb_run: Any = None) -> None:
        self.path = path
        self._wandb_run = wandb_run

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Append one record as a complete line, so that the log stays valid if the run is killed.

        Raises RebarError if writing fails.
        """
        if self.path is None:
            return
        values = {key: _finite_or_none(value) for key, value in values.items()}
        record = {"event": event, "time": round(time.time(), 3), **values}
        try:
            with self.path.open("a+b") as file:
                file.write(_end_of_partial_line(file) + json.dumps(record).encode() + b"\n")
        except OSError as error:
            if (known := write_error(self.path, error)).code == "disk-full":
                raise known from None
            raise RebarError(
                f"{self.path}: writing failed: {error.strerror}. Check the permissions and the disk.",
                code="log-not-writable",
            ) from None
        if self._wandb_run is not None and event in ("step", "epoch"):
            shown = {key: value for key, value in values.items() if value is not None}
            if event == "epoch":  # plot at the end of the epoch, like its last step
                shown["epoch"] += 1
            self._wandb_run.log(shown)


def _finite_or_none(value: Any) -> Any:
    """Replace NaN and infinity, which JSON cannot represent, with None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _end_of_partial_line(file: BinaryIO) -> bytes:
    """Return the line break that ends a partial line of a killed process, if there is one."""
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


@contextmanager
def open_log(path: Path, config: LoggingConfig, *, is_main: bool, options: Mapping[str, Any]) -> Iterator[RunLog]:
    """Open the log of a run, and finish the wandb run at the end. ``options`` is wandb's config."""
    if not is_main:
        yield RunLog(None)
        return
    run = None
    if config.wandb:
        run = start_wandb(
            path.parent, project=config.wandb_project, name=config.wandb_name, tags=config.wandb_tags, options=options
        )
    try:
        yield RunLog(path, run)
    except BaseException:
        if run is not None:
            run.finish(exit_code=1)
        raise
    if run is not None:
        run.finish()


def truncate_log(path: Path, *, epoch: int, step: int) -> None:
    """Remove the records after a checkpoint with ``epoch`` complete epochs and ``step`` steps.

    The resumed run logs them again.
    """
    if not path.is_file():
        return
    records = read_log(path)
    kept = [record for record in records if not _is_after(record, epoch, step)]
    if len(kept) < len(records):
        with atomic_write(path) as (file,):
            file.writelines(json.dumps(record).encode() + b"\n" for record in kept)


def _is_after(record: Record, epoch: int, step: int) -> bool:
    if record["event"] == "step":
        return bool(record["step"] >= step)
    if record["event"] == "epoch":  # the record of an epoch that a limit interrupted has a step
        return bool(record["step"] > step if "step" in record else record["epoch"] >= epoch)
    return bool(record["event"] == "end")


def read_log(path: Path) -> list[Record]:
    """Return all records of a ``log.jsonl``, skipping partial lines of killed runs."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def latest_records(records: list[Record], event: str, key: str) -> list[Record]:
    """Return the records of one event, sorted by ``key``. The last record per key wins."""
    latest = {record[key]: record for record in records if record["event"] == event}
    return [latest[value] for value in sorted(latest)]


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
    times: tuple[float, float] | None = None
    """Times of the first and the last record, in seconds since 1970."""

    @property
    def best(self) -> int | None:
        """The epoch with the highest validation top-1, counted from 0; None if none was evaluated."""
        evaluated = [epoch for epoch in self.epochs if epoch.get("val/top1") is not None]
        return max(evaluated, key=lambda epoch: epoch["val/top1"])["epoch"] if evaluated else None

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
            f"{folder}: not a run folder, because it has no log.jsonl. Pass the --logging.folder of a run.",
            code="run-not-found",
        )
    records = read_log(files.log)
    status = read_status(files.status)
    starts = [record for record in records if record["event"] == "start"]
    state = "" if status is None else status.state + (f": {status.reason}" if status.reason else "")
    times = [record["time"] for record in records if record.get("time") is not None]
    return RunData(
        name=folder.resolve().name,
        epochs=latest_records(records, "epoch", "epoch"),
        steps=latest_records(records, "step", "step"),
        start=starts[-1] if starts else {},
        config=files.config.read_text() if files.config.is_file() else "",
        state=state,
        end=records[-1] if records and records[-1]["event"] == "end" else {},
        times=(times[0], times[-1]) if times else None,
    )


_PACKAGES = ("torch", "torchvision", "numpy", "numba", "ffcv")
_SECRET = re.compile(r"token|secret|passw|api.?key|credential", re.IGNORECASE)


def environment() -> dict[str, str]:
    """Return the command (without secrets), commit, system, processor and package versions."""
    return {
        "command": " ".join(redact_secrets([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "code": _commit(),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "processor": f"{_cpu_description()}, {len(os.sched_getaffinity(0))} usable cores",
        "packages": ", ".join(f"{name} {version}" for name in _PACKAGES if (version := _version(name))),
    }


def redact_secrets(argv: Sequence[str]) -> list[str]:
    """Replace the values of flags such as ``--hf-token`` with asterisks."""
    shown, hide_next = [], False
    for word in argv:
        flag, equals, _ = word.partition("=")
        if hide_next and not word.startswith("--"):
            shown.append("***")
        elif flag.startswith("--") and _SECRET.search(flag):
            shown.append(f"{flag}=***" if equals else word)
        else:
            shown.append(word)
        hide_next = flag.startswith("--") and not equals and bool(_SECRET.search(flag))
    return shown


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_description() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.machine()


def _commit() -> str:
    """Return ``git describe`` of the code, with ``-dirty`` after local changes, or "" outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
