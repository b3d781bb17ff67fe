"""A thread that brings a run's checkpoints and records to a bucket while it trains."""

import dataclasses
import io
import os
import socket
import threading
from pathlib import Path
from typing import IO

from rebar.errors import RebarError
from rebar.reporting.console import warn_above_bar
from rebar.reporting.run_folder import RunFolder
from rebar.storage.run_manifest import MANIFEST, PREVIOUS, RECORDS, Origin, Progress, RunManifest, Stored, read_origin
from rebar.storage.s3 import BucketFolder
from rebar.training.checkpoint import sha256_of
from rebar.training.uploaded_run import place_of, read_manifest, write_origin

LAST_UPLOAD_SECONDS = 300
"""For how long a run that ends waits for its last upload; torchrun and EC2 wait for less."""


class Uploader:
    """Brings every checkpoint to the run's place; where they come faster than they go, the newest.

    What fails is told, and tried again with the next checkpoint and at the end. It never stops training.
    """

    def __init__(
        self,
        place: BucketFolder,
        folder: RunFolder,
        manifest: RunManifest | None,
        *,
        replaced: RunManifest | None = None,
        origin: Origin | None = None,
    ) -> None:
        """``manifest`` is what the place holds of this run, ``replaced`` what it holds of an earlier one."""
        self._place, self._folder, self._origin = place, folder, origin
        self._manifest = manifest
        there = manifest or replaced
        self._objects = {stored.object for stored in there.checkpoints.values()} if there else set[str]()
        self._changed = threading.Condition()
        self._saved: tuple[IO[bytes], Progress] | None = None
        self._wanted, self._ending = True, False  # the first upload shows early whether it works
        self._seen: dict[Path, tuple[int, int, int]] = {}
        self._copies: dict[Path, Stored] = {}
        self._may_delete, self._given_up = True, False
        self._thread = threading.Thread(target=self._work, name="rebar-upload", daemon=True)
        self._thread.start()

    def checkpoint_saved(self, progress: Progress) -> None:
        """The last checkpoint was replaced. Returns at once."""
        try:
            file = self._folder.last_checkpoint.open("rb")  # stays this one when the name gets the next
        except OSError as error:
            warn_above_bar(f"{self._folder.last_checkpoint} cannot be uploaded: {error.strerror}")
            return
        with self._changed:
            self._keep(file, progress)
            self._wanted = True
            self._changed.notify()

    def finish(self, *, at_most: float = LAST_UPLOAD_SECONDS) -> None:
        """Upload what is left, and end. Warns where that takes too long. Called again it does nothing."""
        if self._given_up:
            return
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(timeout=at_most)
        if self._thread.is_alive():
            self._given_up = True
            warn_above_bar(
                f"uploading to {self._place.url} takes more than {at_most:g} s and is left unfinished. All is in "
                f"{self._folder.path}: the same command uploads it when it goes on"
            )

    def _keep(self, file: IO[bytes], progress: Progress) -> None:
        if self._saved is not None:
            self._saved[0].close()
        self._saved = (file, progress)

    def _work(self) -> None:
        ending = False
        while not ending:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._ending)
                self._wanted, ending = False, self._ending
                saved, self._saved = self._saved, None
            try:
                self._upload(saved)
            except Exception as error:  # whatever it is: training goes on, and the next checkpoint is tried
                after = "all is in the run's folder" if ending else "it is tried again with the next checkpoint"
                warn_above_bar(f"not uploaded: {error} ({after})")
                with self._changed:
                    if saved is not None and self._saved is None:
                        self._keep(*saved)
                        saved = None
            if saved is not None:
                saved[0].close()

    def _upload(self, saved: tuple[IO[bytes], Progress] | None) -> None:
        """The checkpoint, the records, which are never older than it, and then the word that it is there."""
        before = self._manifest.checkpoints if self._manifest else {}
        checkpoints = dict(before)
        if saved is not None:
            stored = self._store(saved[0])
            if "last.pt" in before and before["last.pt"] != stored:
                checkpoints[PREVIOUS] = before["last.pt"]
            checkpoints["last.pt"] = stored
        for path in sorted(self._folder.last_checkpoint.parent.glob("*.pt")):
            if path.name not in ("last.pt", PREVIOUS):
                checkpoints[path.name] = self._store_copy(path)
        self._store_records()
        progress = saved[1] if saved else self._progress()
        if progress is not None and (checkpoints != before or progress != self._progress()):
            self._name(RunManifest(progress, checkpoints, socket.gethostname(), self._origin))

    def _progress(self) -> Progress | None:
        return self._manifest.progress if self._manifest else None

    def _name(self, manifest: RunManifest) -> None:
        """Let the manifest name the checkpoints, and remove those that it no longer names."""
        self._place.put(MANIFEST, io.BytesIO(manifest.to_json()))
        self._manifest = manifest
        unnamed = self._objects - {stored.object for stored in manifest.checkpoints.values()}
        for name in sorted(unnamed) if self._may_delete else ():
            try:
                self._place.delete(name)
                self._objects.remove(name)
            except RebarError as error:
                self._may_delete = False
                warn_above_bar(f"{error}: earlier checkpoints stay there")
                return

    def _store(self, file: IO[bytes]) -> Stored:
        """A checkpoint as an object that its contents name, which may be there already."""
        with os.fdopen(os.dup(file.fileno()), "rb") as own:  # boto3 closes what it is given
            own.seek(0)
            sha256 = sha256_of(own)
            stored = Stored(f"checkpoints/{sha256[:16]}.pt", sha256, os.fstat(own.fileno()).st_size)
            if stored.object not in self._objects:
                own.seek(0)
                self._place.put(stored.object, own, sha256=sha256)
                self._objects.add(stored.object)
        return stored

    def _store_copy(self, path: Path) -> Stored:
        """One of the checkpoints that are kept besides the last."""
        state = _state(path)
        if self._seen.get(path) != state:
            with path.open("rb") as file:
                self._copies[path] = self._store(file)
            self._seen[path] = state
        return self._copies[path]

    def _store_records(self) -> None:
        for path in sorted(path for pattern in RECORDS for path in self._folder.path.glob(pattern)):
            state = _state(path)
            if self._seen.get(path) != state:
                self._place.put(path.name, io.BytesIO(path.read_bytes()))
                self._seen[path] = state


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def start_uploads(
    address: str, folder: RunFolder, progress: Progress, steps_per_epoch: int, *, replaces: bool
) -> Uploader:
    """Begin to bring a run to its place below ``address``; the caller is the only writer of its folder.

    ``progress`` is that of the checkpoint the run goes on from. Unless it ``replaces`` what is there, that must not be
    further: raises RebarError where another machine has gone on with the run, and where the place cannot be read.
    """
    place = place_of(address, folder)
    manifest, origin = read_manifest(place), read_origin(folder.origin)
    if origin is not None and manifest is not None:
        if replaces:
            origin = dataclasses.replace(origin, replaced=manifest.last.sha256)
            write_origin(folder, origin)
        replaces = manifest.last.sha256 == origin.replaced  # killed before its first upload, it goes on to replace it
    # another global batch puts the same sample up to a step earlier
    if manifest is not None and not replaces and manifest.progress.position > progress.position + 1.5 / steps_per_epoch:
        raise RebarError(
            f"{place.url} is further than {folder.path}: {manifest.host or 'another machine'} went on with this run to "
            f"step {manifest.progress.step:,}. To go on from there, move {folder.last_checkpoint.parent} away and run "
            "the same command again; or choose another --upload"
        )
    uploader = Uploader(
        place, folder, None if replaces else manifest, replaced=manifest if replaces else None, origin=origin
    )
    if folder.last_checkpoint.exists():
        uploader.checkpoint_saved(progress)  # its last attempt may have ended before it was uploaded
    return uploader
