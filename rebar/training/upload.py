"""Upload a run's checkpoints and records on a background thread, and download an uploaded run to resume it."""

import dataclasses
import socket
import threading
from pathlib import Path
from typing import IO

from rebar.errors import RebarError
from rebar.reporting.console import warn_above_bar
from rebar.reporting.run_folder import RunFolder
from rebar.storage.aws import make_client
from rebar.storage.files import sha256_of
from rebar.storage.run_store import (
    LAST,
    PREVIOUS,
    RECORDS,
    Origin,
    Progress,
    RunManifest,
    RunStore,
    StoredCheckpoint,
    read_origin,
    write_origin,
)
from rebar.storage.s3 import S3Prefix
from rebar.training.distributed import World, gather_from_all, wait_for_all

LAST_UPLOAD_SECONDS = 300
"""Maximum wait for the last upload before a run exits. torchrun and EC2 may allow less."""


class Uploader:
    """Uploads each checkpoint, or only the newest if they are saved faster than they are uploaded.

    A failed upload prints a warning and is retried with the next checkpoint and at the end. It never stops training.
    """

    def __init__(
        self,
        store: RunStore,
        folder: RunFolder,
        manifest: RunManifest | None,
        *,
        replaced: RunManifest | None = None,
        overwrite: bool = False,
        origin: Origin | None = None,
    ) -> None:
        """Start the thread. ``manifest`` is this run's uploaded manifest, ``replaced`` that of the run it replaces.

        The checkpoints of a replaced run are kept as ``replaced_last.pt`` etc., and deleted with ``overwrite``.
        """
        self._store, self._folder, self._origin = store, folder, origin
        self._manifest = manifest
        kept = replaced.checkpoints if replaced is not None and not overwrite else {}
        self._kept = {f"replaced_{name}": stored for name, stored in kept.items()}
        uploaded = manifest or replaced
        self._objects = {stored.object for stored in uploaded.checkpoints.values()} if uploaded else set[str]()
        self._changed = threading.Condition()
        self._saved: tuple[IO[bytes], Progress] | None = None
        self._requested, self._ending = True, False  # upload the records first, so that failures show early
        self._uploaded: dict[Path, tuple[int, int, int]] = {}
        self._copies: dict[Path, StoredCheckpoint] = {}
        self._may_delete, self._given_up = True, False
        self._thread = threading.Thread(target=self._work, name="rebar-upload", daemon=True)
        self._thread.start()

    def checkpoint_saved(self, progress: Progress) -> None:
        """Request an upload of the new ``last.pt``. Does not block."""
        try:
            file = self._folder.last_checkpoint.open("rb")  # still this file after last.pt is replaced
        except OSError as error:
            warn_above_bar(f"{self._folder.last_checkpoint} cannot be uploaded: {error.strerror}")
            return
        with self._changed:
            self._keep(file, progress)
            self._requested = True
            self._changed.notify()

    def finish(self, *, at_most: float = LAST_UPLOAD_SECONDS) -> None:
        """Finish the uploads and stop the thread. After ``at_most`` seconds, warn and give up. Idempotent."""
        if self._given_up:
            return
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(timeout=at_most)
        if self._thread.is_alive():
            self._given_up = True
            warn_above_bar(
                f"the upload to {self._store.url} takes more than {at_most:g} s and is abandoned. Everything is in "
                f"{self._folder.path}; the same command uploads it when it resumes"
            )

    def _keep(self, file: IO[bytes], progress: Progress) -> None:
        if self._saved is not None:
            self._saved[0].close()
        self._saved = (file, progress)

    def _work(self) -> None:
        ending = False
        while not ending:
            with self._changed:
                self._changed.wait_for(lambda: self._requested or self._ending)
                self._requested, ending = False, self._ending
                saved, self._saved = self._saved, None
            try:
                self._upload(saved)
            except Exception as error:  # training continues after any error
                retry = "everything is in the run's folder" if ending else "the next checkpoint retries it"
                warn_above_bar(f"not uploaded: {error} ({retry})")
                with self._changed:
                    if saved is not None and self._saved is None:
                        self._keep(*saved)
                        saved = None
            if saved is not None:
                saved[0].close()

    def _upload(self, saved: tuple[IO[bytes], Progress] | None) -> None:
        """Upload the checkpoints, then the records, so that these are never older, then the manifest."""
        before = self._manifest.checkpoints if self._manifest else self._kept
        checkpoints = dict(before)
        if saved is not None:
            checkpoints[LAST] = self._store.store_checkpoint(saved[0], self._objects)
            self._objects.add(checkpoints[LAST].object)
            if LAST in before and before[LAST] != checkpoints[LAST]:
                checkpoints[PREVIOUS] = before[LAST]
        for path in sorted(self._folder.last_checkpoint.parent.glob("*.pt")):
            if path.name not in (LAST, PREVIOUS):
                checkpoints[path.name] = self._store_copy(path)
        for path in sorted(path for pattern in RECORDS for path in self._folder.path.glob(pattern)):
            state = _state(path)
            if self._uploaded.get(path) != state:
                self._store.store_record(path)
                self._uploaded[path] = state
        progress = saved[1] if saved else self._progress()
        if progress is not None and (checkpoints != before or progress != self._progress()):
            manifest = RunManifest(progress, checkpoints, socket.gethostname(), self._origin)
            self._store.write_manifest(manifest)
            self._manifest = manifest
            self._delete_unreferenced(manifest)

    def _progress(self) -> Progress | None:
        return self._manifest.progress if self._manifest else None

    def _store_copy(self, path: Path) -> StoredCheckpoint:
        """Upload ``best.pt`` or ``epoch_N.pt`` unless it is unchanged since its last upload."""
        state = _state(path)
        if self._uploaded.get(path) != state:
            with path.open("rb") as file:
                self._copies[path] = self._store.store_checkpoint(file, self._objects)
            self._objects.add(self._copies[path].object)
            self._uploaded[path] = state
        return self._copies[path]

    def _delete_unreferenced(self, manifest: RunManifest) -> None:
        """Delete checkpoints that the manifest no longer references, if the credentials permit it."""
        unreferenced = self._objects - {stored.object for stored in manifest.checkpoints.values()}
        if not self._may_delete:
            return
        try:
            self._store.delete(unreferenced)
            self._objects -= unreferenced
        except RebarError as error:
            self._may_delete = False
            warn_above_bar(f"{error} Earlier checkpoints are kept in S3.")


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def start_uploads(
    address: str,
    folder: RunFolder,
    progress: Progress,
    steps_per_epoch: int,
    *,
    replaces: bool,
    overwrite: bool = False,
) -> Uploader:
    """Start uploading a run below ``address``. The caller must hold the folder's lock.

    ``progress`` is that of the checkpoint that the run resumes from. Unless the run ``replaces`` the uploaded one, the
    uploaded one must not have more progress: raises RebarError ``run-continued-elsewhere`` if another machine has
    resumed the run, and AwsError if S3 cannot be read.
    """
    store = run_store(address, folder)
    manifest, origin = store.read_manifest(), read_origin(folder.origin)
    if origin is not None and manifest is not None:
        if replaces:
            origin = dataclasses.replace(origin, replaced=manifest.last.sha256)
            write_origin(folder.origin, origin)
        replaces = manifest.last.sha256 == origin.replaced  # also true after a kill before the first upload
    # With a different global batch, the same position may be a step earlier.
    if manifest is not None and not replaces and manifest.progress.position > progress.position + 1.5 / steps_per_epoch:
        raise RebarError(
            f"{folder.path}: {manifest.host or 'another machine'} has resumed this run, and uploaded step "
            f"{manifest.progress.step:,} to {store.url}. To continue from there, move "
            f"{folder.last_checkpoint.parent} away and run the same command again; or choose another --upload.",
            code="run-continued-elsewhere",
        )
    own, replaced = (None, manifest) if replaces else (manifest, None)
    uploader = Uploader(store, folder, own, replaced=replaced, overwrite=overwrite, origin=origin)
    if folder.last_checkpoint.exists():
        uploader.checkpoint_saved(progress)  # the previous attempt may have ended before its upload
    return uploader


def run_store(address: str, folder: RunFolder) -> RunStore:
    """Return the store of this folder's run below ``address``. Raises AwsError if that is not an S3 URL."""
    prefix = S3Prefix.parse(address, "logging.upload").below(folder.path.resolve().name)
    return RunStore(make_client("s3"), prefix, threads=0)  # the upload thread is a daemon, which cannot start others


def fetch_run(address: str, folder: RunFolder, world: World, *, resume: str, overwrite: bool) -> None:
    """Download the uploaded run if the folder has no checkpoint. ``resume`` is the value of --resume.

    Every rank must call it; the first rank of each node downloads. If nodes with separate folders do not all
    have the same checkpoint, all of them use the uploaded one. Raises RebarError if S3 cannot be read
    (``aws-*``, ``s3-*``), if ``--resume none`` would replace an uploaded run (``run-exists``), or if the nodes have
    different checkpoints and nothing is uploaded (``checkpoint-differs-between-nodes``).
    """
    if not address or (resume != "auto" and (resume != "none" or overwrite)):
        return
    gathered = gather_from_all(_checksum(folder) if world.is_local_main else None, world)
    present = {checksum for checksum in gathered if checksum is not None}
    if len(present) == 1 and all(present) and resume == "auto":
        return
    store = run_store(address, folder)
    for downloads_now in (world.is_main, world.is_local_main and not world.is_main):  # the nodes may share the folder
        if downloads_now:
            manifest = store.read_manifest()
            if manifest is not None and resume == "none":
                raise RebarError(
                    f"{store.url} contains an earlier run. Omit --resume none to resume it, add --overwrite to "
                    "replace it, or choose another --logging.folder.",
                    code="run-exists",
                )
            if manifest is not None and _checksum(folder) != manifest.last.sha256:
                fetched = store.fetch(folder.path, overwrite=folder.last_checkpoint.is_file())
                assert fetched is not None
                print(f"fetched   {store.url}/{fetched.last.object}, uploaded by {fetched.host}", flush=True)
            if manifest is None and any(present):
                raise RebarError(
                    f"{folder.path}: the nodes have different checkpoints, and {store.url} has none. Put the folder "
                    "on a shared file system, or copy it to all nodes.",
                    code="checkpoint-differs-between-nodes",
                )
        wait_for_all(world)


def _checksum(folder: RunFolder) -> str:
    """Return the SHA-256 of the last checkpoint; empty if there is none."""
    if not folder.last_checkpoint.is_file():
        return ""
    with folder.last_checkpoint.open("rb") as file:
        return sha256_of(file)
