"""What a run ran on and with: for its log and its report.

The log of a run: one JSON object a line in ``log.jsonl``, and Weights & Biases if asked.

Every record has ``event`` (start, step, epoch or end) and ``time`` (seconds since 1970). Metrics have
slashed names such as ``train/loss``, the same in both places. One that is no finite number is null.
"""

import importlib.metadata
import json
import math
import os
import platform
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rebar.cli import warn
from rebar.config import option
from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder
from rebar.storage.atomic_write import atomic_write

_PACKAGES = ("torch", "torchvision", "numpy", "numba", "ffcv")
_SECRET = re.compile(r"token|secret|passw|api.?key|credential", re.IGNORECASE)


def environment() -> dict[str, str]:
    """Command, code, machine and versions, in words; secrets on the command line are left out."""
    return {
        "command": " ".join(without_secrets([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "code": _commit(),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores usable",
        "packages": ", ".join(f"{name} {version}" for name in _PACKAGES if (version := _version(name))),
    }


def without_secrets(words: Sequence[str]) -> list[str]:
    """A command line in which the values of what looks like a secret's flag are stars."""
    shown, hide_next = [], False
    for word in words:
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


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.machine()


def _commit() -> str:
    """The commit of the code, and whether it was changed since; empty where that is not known."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@dataclass(frozen=True)
class LoggingConfig:
    """Logging."""

    folder: str = option("", help="folder of the run; default runs/NAME, NAME the config file's")
    log_level: int = option(1, help="0: evaluate and report after the last epoch only; 1: after each", minimum=0)
    log_every: int = option(50, help="steps between records of the training loss", minimum=1)
    wandb: bool = option(False, help="also log to Weights & Biases (WANDB_MODE=offline works)")
    wandb_project: str = option("rebar", help="Weights & Biases project")
    wandb_name: str = option("", help="Weights & Biases run name; default the run folder's")
    wandb_tags: str = option("", help="Weights & Biases tags, with commas between them")
    upload: str = option(
        "", help="s3://bucket/prefix: bring checkpoints and log there, below the folder's name, and go on from there"
    )
    hf_repo: str = option(
        "", help="owner/name: at the end publish weights, model card, report and config there; token: HF_TOKEN"
    )
    show_progress: bool = option(True, help="progress bars")


class RunLog:
    """Appends records; in processes other than the first it does nothing."""

    def __init__(self, path: Path | None, wandb_run: Any = None) -> None:
        self.path = path
        self._wandb_run = wandb_run

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Append one record, whole lines only, so that a killed run leaves a readable log."""
        if self.path is None:
            return
        values = {key: _as_json(value) for key, value in values.items()}
        record = {"event": event, "time": round(time.time(), 3), **values}
        try:
            with self.path.open("a+b") as file:
                file.write(_line_break_after_a_kill(file) + json.dumps(record).encode() + b"\n")
        except OSError as error:
            raise RebarError(f"{self.path}: the log cannot be written: {error.strerror}") from None
        if self._wandb_run is not None and event in ("step", "epoch"):
            shown = {key: value for key, value in values.items() if value is not None}
            if event == "epoch":  # counted from 0; its metrics are those at its end, where the steps' count has come to
                shown["epoch"] += 1
            self._wandb_run.log(shown)


def _as_json(value: Any) -> Any:
    """What JSON can hold: it has neither NaN nor infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line_break_after_a_kill(file: BinaryIO) -> bytes:
    """What ends a line that a killed run left unfinished."""
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


@contextmanager
def open_log(path: Path, config: LoggingConfig, *, is_main: bool, settings: Mapping[str, Any]) -> Iterator[RunLog]:
    """The run's log, closed (wandb's run finished) at the end. ``settings`` is shown in wandb."""
    if not is_main:
        yield RunLog(None)
        return
    run = _start_wandb(path.parent, config, settings) if config.wandb else None
    try:
        yield RunLog(path, run)
    except BaseException:
        if run is not None:
            run.finish(exit_code=1)
        raise
    if run is not None:
        run.finish()


def check_wandb_installed() -> None:
    """Raise RebarError where it is not."""
    try:
        import wandb  # noqa: F401  its absence is said before the run begins
    except ImportError:
        raise RebarError("logging.wandb: wandb is not installed: 'pip install wandb'") from None


def _start_wandb(folder: Path, config: LoggingConfig, settings: Mapping[str, Any]) -> Any:
    check_wandb_installed()
    import wandb

    mode: Any = os.environ.get("WANDB_MODE")
    if mode is None and not wandb.api.api_key:  # wandb would ask on the terminal, and wait
        warn("not logged in to Weights & Biases: logging offline; 'wandb sync' in the run folder uploads it later")
        mode = "offline"
    try:
        run = wandb.init(
            project=config.wandb_project,
            name=config.wandb_name or folder.name,
            tags=[tag.strip() for tag in config.wandb_tags.split(",") if tag.strip()],
            id=_wandb_id(folder),
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            mode=mode,
        )
        run.define_metric("*", step_metric="epoch")  # a resumed run repeats some steps, which wandb's own count cannot
        return run
    except wandb.Error as error:
        raise RebarError(f"logging.wandb: {error}") from None


def _wandb_id(folder: Path) -> str:
    """The run's name at Weights & Biases, kept in its folder, so that a resumed run goes on there."""
    path = RunFolder(folder).wandb_id
    if not path.is_file():
        with atomic_write(path) as (file,):
            file.write(secrets.token_hex(8).encode())
    return path.read_text().strip()


def forget_after(path: Path, *, epoch: int, step: int) -> None:
    """Take out what a run logged beyond the checkpoint it goes on from: it will log that again.

    ``epoch`` and ``step`` are the complete epochs and steps of the checkpoint.
    """
    if not path.is_file():
        return
    records = read_log(path)
    kept = [record for record in records if not _is_beyond(record, epoch, step)]
    if len(kept) < len(records):
        with atomic_write(path) as (file,):
            file.writelines(json.dumps(record).encode() + b"\n" for record in kept)


def _is_beyond(record: Mapping[str, Any], epoch: int, step: int) -> bool:
    if record["event"] == "step":
        return bool(record["step"] >= step)
    if record["event"] == "epoch":  # one that a limit cut short says after which step
        return bool(record["step"] > step if "step" in record else record["epoch"] >= epoch)
    return bool(record["event"] == "end")


def read_log(path: Path) -> list[dict[str, Any]]:
    """All records of a ``log.jsonl``; a last line cut off by a kill is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
