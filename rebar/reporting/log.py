"""The log of a run: one JSON object per line in ``log.jsonl``, and optionally Weights & Biases.

Every record has an ``event`` (start, step, epoch or end) and a ``time`` in seconds since 1970. Metrics have the same
names in both, such as ``train/loss``. NaN and infinite values are null.
"""

import json
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rebar.cli import warn
from rebar.config import option
from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder
from rebar.storage.files import atomic_write

Record = dict[str, Any]


@dataclass(frozen=True)
class LoggingConfig:
    """Logging."""

    folder: str = option("", help="run folder; default runs/NAME, where NAME is the config file's stem")
    log_level: int = option(1, help="0: evaluate and report after the last epoch only; 1: after each epoch", minimum=0)
    log_every: int = option(50, help="steps between records of the training loss", minimum=1)
    wandb: bool = option(False, help="also log to Weights & Biases (WANDB_MODE=offline works)")
    wandb_project: str = option("rebar", help="Weights & Biases project")
    wandb_name: str = option("", help="Weights & Biases run name; default: name of the run folder")
    wandb_tags: str = option("", help="Weights & Biases tags, separated by commas")
    upload: str = option(
        "", help="s3://bucket/prefix: upload checkpoints and log to the run's folder there, and resume from it"
    )
    hf_repo: str = option(
        "", help="owner/name: publish weights, model card, report and config there at the end; token: HF_TOKEN"
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
            raise RebarError(
                f"{self.path}: writing failed: {error.strerror}. Free some disk space, or check the permissions.",
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
    run = _start_wandb(path.parent, config, options) if config.wandb else None
    try:
        yield RunLog(path, run)
    except BaseException:
        if run is not None:
            run.finish(exit_code=1)
        raise
    if run is not None:
        run.finish()


def check_wandb_installed() -> None:
    """Raise RebarError if wandb is not installed."""
    try:
        import wandb  # noqa: F401  only to check, before the run starts
    except ImportError:
        message = "logging.wandb: wandb is not installed. Run 'pip install wandb'."
        raise RebarError(message, code="wandb-not-installed") from None


def _start_wandb(folder: Path, config: LoggingConfig, options: Mapping[str, Any]) -> Any:
    check_wandb_installed()
    import wandb

    mode: Any = os.environ.get("WANDB_MODE")
    if mode is None and not wandb.api.api_key:  # wandb would prompt on the terminal and block
        warn("not logged in to Weights & Biases: logging offline; run 'wandb sync' in the run folder to upload")
        mode = "offline"
    try:
        run = wandb.init(
            project=config.wandb_project,
            name=config.wandb_name or folder.name,
            tags=[tag.strip() for tag in config.wandb_tags.split(",") if tag.strip()],
            id=_wandb_id(folder),
            resume="allow",
            dir=str(folder),
            config=dict(options),
            mode=mode,
        )
        run.define_metric("*", step_metric="epoch")  # wandb's step only increases; a resumed run repeats some steps
        return run
    except wandb.Error as error:
        message = f"logging.wandb: {error}. Check the project's name and your permissions."
        raise RebarError(message, code="wandb-failed") from None


def _wandb_id(folder: Path) -> str:
    """Return the wandb run id. It is stored in the run folder, so that a resumed run continues the wandb run."""
    path = RunFolder(folder).wandb_id
    if not path.is_file():
        with atomic_write(path) as (file,):
            file.write(secrets.token_hex(8).encode())
    return path.read_text().strip()


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
