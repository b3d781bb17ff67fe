"""The JSON files of a run, and its copy in S3 at ``s3://bucket/prefix/RUN``.

``status.json`` has the run's state: scripts decide by it whether to restart a run, because torchrun replaces every
worker's exit status with 1. ``origin.json`` records how the run started.

In S3, ``run.json`` references the checkpoints, ``checkpoints/SHA256.pt``. It is replaced after the upload of a
checkpoint, and unreferenced checkpoints are deleted afterwards, so readers always find complete checkpoints.
"""

import io
import json
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

from rebar.cli import warn
from rebar.storage.aws import AwsError, S3NotFoundError, aws_error_code, translate_aws_error
from rebar.storage.files import atomic_write, link_or_copy, sha256_of, write_error, write_small_file
from rebar.storage.s3 import UPLOAD_THREADS, S3ChecksumError, S3Prefix, download, keep_existing, upload

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
    write_small_file(path, json.dumps(asdict(origin), indent=2).encode() + b"\n")


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
            record = json.loads(content)
            if (record["format"], record["version"]) != (FORMAT, VERSION):
                raise ValueError("version")
            checkpoints = {name: StoredCheckpoint(**stored) for name, stored in record["checkpoints"].items()}
            if LAST not in checkpoints or any("/" in name for name in checkpoints):
                raise ValueError("names")
            progress = Progress(record["epoch"], record["step"], record["position"])
            return cls(progress, checkpoints, record["host"], Origin.from_record(record.get("origin")))
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"not a {MANIFEST}") from None


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


def write_status(path: Path, status: RunStatus) -> None:
    """Replace the file; on a full disk, overwrite it in place. Raises RebarError if it cannot be written."""
    process = {"time": round(time.time(), 3), "host": socket.gethostname(), "pid": os.getpid()}
    write_small_file(path, json.dumps({**asdict(status), **process}, indent=2).encode() + b"\n")


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


BEST = "best.pt"


class RunStore:
    """The objects of one uploaded run. Every method raises AwsError if S3 cannot be used."""

    def __init__(self, client: Any, prefix: S3Prefix, *, threads: int = UPLOAD_THREADS) -> None:
        """Use ``threads`` for uploads, as in :func:`rebar.storage.s3.upload`."""
        self._client, self._prefix, self._threads = client, prefix, threads
        self.url = str(prefix)

    def read_manifest(self) -> RunManifest | None:
        """Return the manifest; None if nothing is uploaded."""
        return self.read_version()[0]

    def read_version(self) -> tuple[RunManifest | None, str]:
        """Return the manifest and its ETag; None and an empty string if nothing is uploaded."""
        try:
            content, version = self._read(MANIFEST)
            return RunManifest.from_json(content), version
        except S3NotFoundError:
            return None, ""
        except ValueError:
            raise AwsError(
                f"{self.url}/{MANIFEST} is damaged or of another version. Change the prefix, or use --overwrite.",
                code="s3-run-invalid",
            ) from None

    def write_manifest(self, manifest: RunManifest, *, if_version: str | None = None) -> bool:
        """Replace the manifest; return False if its ETag is not ``if_version`` ("": it must not exist)."""
        condition = {} if if_version is None else {"IfMatch": if_version} if if_version else {"IfNoneMatch": "*"}
        target = {"Bucket": self._prefix.bucket, "Key": self._prefix.key(MANIFEST)}
        with translate_aws_error(f"uploading {self.url}/{MANIFEST}"):
            try:
                self._client.put_object(**target, Body=manifest.to_json(), ChecksumAlgorithm="SHA256", **condition)
            except Exception as error:
                if condition and aws_error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict"):
                    return False
                raise
        return True

    def store_checkpoint(self, file: IO[bytes], present: Collection[str]) -> StoredCheckpoint:
        """Upload an open checkpoint, unless its object is in ``present``, the names of the uploaded objects."""
        with os.fdopen(os.dup(file.fileno()), "rb") as own:  # boto3 closes the file
            own.seek(0)
            sha256 = sha256_of(own)
            stored = StoredCheckpoint(f"checkpoints/{sha256[:16]}.pt", sha256, os.fstat(own.fileno()).st_size)
            if stored.object not in present:
                own.seek(0)
                self._upload(stored.object, own, sha256)
        return stored

    def store_record(self, path: Path) -> None:
        """Upload a small file of the run folder."""
        self._upload(path.name, io.BytesIO(path.read_bytes()))

    def delete(self, names: Collection[str]) -> None:
        """Delete objects. Missing objects are ignored."""
        for name in sorted(names):
            with translate_aws_error(f"deleting {self.url}/{name}"):
                self._client.delete_object(Bucket=self._prefix.bucket, Key=self._prefix.key(name))

    def fetch(self, folder: Path, *, overwrite: bool = False) -> RunManifest | None:
        """Download the run into a folder, to resume it there; None if nothing is uploaded.

        Unless ``overwrite``, existing files with other contents are renamed.
        ``last.pt`` is renamed into place after everything else, so its presence means that the download is complete.
        A damaged checkpoint is removed from the manifest, and the previous one is used. Its object is kept.
        """
        manifest, version = self.read_version()
        while manifest is not None:
            try:
                self._fetch(manifest, folder, (lambda *_: None) if overwrite else keep_existing)
                return manifest
            except S3ChecksumError as error:
                self.write_manifest(self._without_damaged(manifest, error), if_version=version)
                manifest, version = self.read_version()
            except S3NotFoundError:  # a newer upload replaced the manifest, and deleted the objects of the old one
                newer, version = self.read_version()
                if newer is None or newer == manifest:
                    raise
                manifest = newer
        return None

    def _fetch(self, manifest: RunManifest, folder: Path, keep: Callable[[Path, str], None]) -> None:
        checkpoints, last, best = folder / "checkpoints", manifest.last, manifest.checkpoints.get(BEST)
        try:
            checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from None
        for name in RECORDS_TO_RESUME:
            with suppress(S3NotFoundError):
                content, _ = self._read(name)
                keep(folder / name, sha256_of(io.BytesIO(content)))
                with atomic_write(folder / name) as (file,):
                    file.write(content)
        if manifest.origin != read_origin(folder / ORIGIN):
            keep(folder / ORIGIN, "")
            write_origin(folder / ORIGIN, manifest.origin)
        for name in {LAST, BEST} & manifest.checkpoints.keys():
            keep(checkpoints / name, manifest.checkpoints[name].sha256)
        if best is not None and best != last:
            self._download(best, checkpoints / BEST)
        self._download(last, checkpoints / LAST)
        if best == last:
            link_or_copy(checkpoints / LAST, checkpoints / BEST)

    def _read(self, name: str) -> tuple[bytes, str]:
        with translate_aws_error(f"reading {self.url}/{name}"):
            response = self._client.get_object(Bucket=self._prefix.bucket, Key=self._prefix.key(name))
            return response["Body"].read(), str(response["ETag"])

    def _download(self, stored: StoredCheckpoint, target: Path) -> None:
        key = self._prefix.key(stored.object)
        download(self._client, self._prefix.bucket, key, target, sha256=stored.sha256, overwrite=True)

    def _without_damaged(self, manifest: RunManifest, error: S3ChecksumError) -> RunManifest:
        """Return the manifest without a damaged checkpoint; ``previous.pt`` replaces ``last.pt``."""
        damaged = error.key.removeprefix(self._prefix.key(""))
        intact = {name: stored for name, stored in manifest.checkpoints.items() if stored.object != damaged}
        last = intact.get(LAST) or intact.pop(PREVIOUS, None)
        if last is None:
            raise error
        warn(f"{self.url}/{damaged} does not match its SHA-256. The previous checkpoint is used.")
        return replace(manifest, progress=Progress(0, 0, 0.0), checkpoints={**intact, LAST: last})

    def _upload(self, name: str, content: IO[bytes], sha256: str = "") -> None:
        upload(self._client, content, self._prefix.bucket, self._prefix.key(name), sha256=sha256, threads=self._threads)
