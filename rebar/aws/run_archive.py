"""Upload a run folder to S3 and download it, without importing torch."""

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebar.cli import warn
from rebar.storage.boto import AwsError
from rebar.storage.files import sha256_of
from rebar.storage.run_manifest import (
    LAST,
    ORIGIN,
    PREVIOUS,
    RECORDS,
    Progress,
    RunManifest,
    StoredCheckpoint,
    read_origin,
)
from rebar.storage.run_status import read_status
from rebar.storage.run_store import RunStore
from rebar.storage.s3 import S3Prefix

TRIES = 5
STALE_SECONDS = 3600


@dataclass(frozen=True)
class UploadResult:
    """Step of the uploaded run, and number and size of the checkpoints that were uploaded."""

    step: int
    checkpoints: int
    bytes: int


def upload_run(client: Any, folder: Path, prefix: S3Prefix) -> UploadResult:
    """Upload a run's checkpoints and records, then the manifest.

    Checkpoints that are in S3 are not uploaded again. Those that the new manifest does not list are deleted. The
    manifest is replaced only if it has not changed meanwhile, so concurrent uploads lose nothing. Raises AwsError
    ``run-without-checkpoint`` and, if S3 has more progress, ``run-continued-elsewhere``.
    """
    if not (folder / "checkpoints" / LAST).is_file():
        raise AwsError(f"{folder}: checkpoints/{LAST} does not exist. Train first.", code="run-without-checkpoint")
    store = RunStore(client, prefix)
    with _frozen_copy(folder) as (checkpoints, records):
        for _ in range(TRIES):
            before, version = store.read_version()
            known = dict(before.checkpoints) if before else {}
            present = {stored.object for stored in known.values()}
            named = {path.name: _stored(path) for path in checkpoints}
            progress = _progress(folder)
            if before and before.progress.step > progress.step:
                if known[LAST] != named[LAST]:
                    raise AwsError(
                        f"{folder} is at step {progress.step}, but {prefix} is at step {before.progress.step}, "
                        f"uploaded by {before.host or 'another machine'}. Use another prefix to keep both.",
                        code="run-continued-elsewhere",
                    )
                progress = before.progress
            for path in checkpoints:
                if named[path.name].object not in present:
                    with path.open("rb") as file:
                        store.store_checkpoint(file, present)
            for path in records:
                store.store_record(path)
            new = [stored for stored in set(named.values()) if stored.object not in present]
            previous = known.get(LAST) if known.get(LAST) != named[LAST] else known.get(PREVIOUS)
            if previous is not None:
                named[PREVIOUS] = previous
            manifest = RunManifest(progress, named, socket.gethostname(), read_origin(folder / ORIGIN))
            if store.write_manifest(manifest, if_version=version):
                _delete(store, present - {stored.object for stored in named.values()})
                return UploadResult(progress.step, len(new), sum(stored.bytes for stored in new))
    raise AwsError(f"{prefix}: another process keeps uploading to it. Use another prefix.", code="run-upload-conflict")


def fetch_run(client: Any, prefix: S3Prefix, folder: Path, *, replace: bool = False) -> RunManifest | None:
    """Download a run to a folder, to resume it there. Returns None if the run was not uploaded.

    Raises AwsError ``run-exists`` if the folder has another last checkpoint, unless ``replace``.
    """
    store, last = RunStore(client, prefix), folder / "checkpoints" / LAST
    manifest = store.read_manifest()
    if manifest and not replace and last.is_file() and _stored(last).sha256 != manifest.last.sha256:
        raise AwsError(
            f"{last} is not the checkpoint of {prefix} (step {manifest.progress.step}). Upload it, or replace it with "
            "--replace.",
            code="run-exists",
        )
    return store.fetch(folder)


def _progress(folder: Path) -> Progress:
    """Return the progress in ``status.json``. While training runs, this is the progress at its start."""
    status = read_status(folder / "status.json")
    if status is None:
        return Progress(0, 0, 0.0)
    return Progress(status.epoch, status.step, float(status.epoch) if status.position is None else status.position)


@contextlib.contextmanager
def _frozen_copy(folder: Path) -> Iterator[tuple[list[Path], list[Path]]]:
    """Yield hard links to the checkpoints and copies of the records, since training may replace the originals."""
    for left in folder.glob(".upload-*"):  # left by a killed command
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".upload-", dir=folder) as temporary:
        checkpoints, records = Path(temporary, "checkpoints"), Path(temporary, "records")
        checkpoints.mkdir()
        records.mkdir()
        for path in (folder / "checkpoints").glob("[!.]*.pt"):
            if path.name != PREVIOUS:
                with suppress(FileNotFoundError):  # deleted by training
                    os.link(path, checkpoints / path.name)
        for path in (path for pattern in RECORDS for path in folder.glob(pattern)):
            with suppress(FileNotFoundError):
                shutil.copyfile(path, records / path.name)
        yield sorted(checkpoints.iterdir()), sorted(records.iterdir())


def _stored(path: Path) -> StoredCheckpoint:
    with path.open("rb") as file:
        return StoredCheckpoint.of(sha256_of(file), path.stat().st_size)


def _delete(store: RunStore, names: set[str]) -> None:
    """Delete checkpoints that the manifest no longer lists. Without permission, they are kept, with a warning."""
    try:
        store.delete(names)
    except AwsError as error:
        warn(f"{error} Earlier checkpoints are kept in S3.")
