"""Store a run at ``s3://bucket/prefix/RUN``, in the same layout for training and ``python -m rebar.aws run``.

``run.json`` references the checkpoints, ``checkpoints/SHA256.pt``. It is replaced after the upload of a checkpoint, and
unreferenced checkpoints are deleted afterwards, so readers always find complete checkpoints.
"""

import io
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from rebar.cli import warn
from rebar.storage.boto import AwsError, S3NotFoundError, aws_error_code, translate_aws_error
from rebar.storage.files import atomic_write, link_or_copy, sha256_of, write_error
from rebar.storage.run_records import (
    LAST,
    MANIFEST,
    ORIGIN,
    PREVIOUS,
    RECORDS_TO_RESUME,
    Progress,
    RunManifest,
    StoredCheckpoint,
    write_origin,
)
from rebar.storage.s3 import UPLOAD_THREADS, S3ChecksumError, S3Prefix, download, upload

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
        with translate_aws_error(f"reading {self.url}/{MANIFEST}"):
            try:
                response = self._client.get_object(Bucket=self._prefix.bucket, Key=self._prefix.key(MANIFEST))
                content = response["Body"].read()
            except Exception as error:
                if aws_error_code(error) in ("404", "NoSuchKey"):
                    return None, ""
                raise
        try:
            return RunManifest.from_json(content), str(response["ETag"])
        except ValueError:
            raise AwsError(
                f"{self.url}/{MANIFEST} is damaged, or has another version. Use another prefix, or replace the "
                "uploaded run with --resume none --overwrite.",
                code="s3-run-invalid",
            ) from None

    def write_manifest(self, manifest: RunManifest, *, if_version: str | None = None) -> bool:
        """Replace the manifest; return False if its ETag is not ``if_version`` ("": it must not exist)."""
        condition = {} if if_version is None else {"IfMatch": if_version} if if_version else {"IfNoneMatch": "*"}
        where = {"Bucket": self._prefix.bucket, "Key": self._prefix.key(MANIFEST)}
        with translate_aws_error(f"uploading {self.url}/{MANIFEST}"):
            try:
                self._client.put_object(**where, Body=manifest.to_json(), ChecksumAlgorithm="SHA256", **condition)
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
            stored = StoredCheckpoint.of(sha256, os.fstat(own.fileno()).st_size)
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

    def fetch(self, folder: Path) -> RunManifest | None:
        """Download the run into a folder, to resume it there; None if nothing is uploaded.

        ``last.pt`` is renamed into place after everything else, so its presence means that the download is complete.
        A damaged checkpoint is removed from the manifest, and the previous one is used. Its object is kept.
        """
        manifest, version = self.read_version()
        while manifest is not None:
            try:
                self._fetch(manifest, folder)
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

    def _fetch(self, manifest: RunManifest, folder: Path) -> None:
        checkpoints, last, best = folder / "checkpoints", manifest.last, manifest.checkpoints.get(BEST)
        try:
            checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from None
        for name in RECORDS_TO_RESUME:
            with suppress(S3NotFoundError):
                self._fetch_record(name, folder)
        write_origin(folder / ORIGIN, manifest.origin)
        if best is not None and best != last:
            self._download(best, checkpoints / BEST)
        self._download(last, checkpoints / LAST)
        if best == last:
            link_or_copy(checkpoints / LAST, checkpoints / BEST)

    def _fetch_record(self, name: str, folder: Path) -> None:
        with translate_aws_error(f"reading {self.url}/{name}"):
            response = self._client.get_object(Bucket=self._prefix.bucket, Key=self._prefix.key(name))
            content = response["Body"].read()
        with atomic_write(folder / name) as (file,):
            file.write(content)

    def _download(self, stored: StoredCheckpoint, target: Path) -> None:
        download(self._client, self._prefix.bucket, self._prefix.key(stored.object), target, sha256=stored.sha256)

    def _without_damaged(self, manifest: RunManifest, error: S3ChecksumError) -> RunManifest:
        """Return the manifest without a damaged checkpoint; ``previous.pt`` replaces ``last.pt``."""
        damaged = error.key.removeprefix(self._prefix.key(""))
        intact = {name: stored for name, stored in manifest.checkpoints.items() if stored.object != damaged}
        last = intact.get(LAST) or intact.pop(PREVIOUS, None)
        if last is None:
            raise error
        warn(f"{self.url}/{damaged} does not match its SHA-256. The previous checkpoint is used.")
        # The checkpoint itself contains its progress.
        return replace(manifest, progress=Progress(0, 0, 0.0), checkpoints={**intact, LAST: last})

    def _upload(self, name: str, content: IO[bytes], sha256: str = "") -> None:
        where = (self._prefix.bucket, self._prefix.key(name))
        upload(self._client, content, *where, sha256=sha256, threads=self._threads)
