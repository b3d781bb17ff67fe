"""A run as it lies in a bucket, and how another machine goes on with it.

A run's place is ``s3://bucket/prefix/RUN``, RUN being the name of its folder. ``run.json`` there names the objects of
its checkpoints and their SHA-256. It is replaced after they are stored, and what it no longer names is removed after
that: who reads it finds whole checkpoints.
"""

import io
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from rebar.cli import warn
from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder
from rebar.storage.atomic_write import atomic_write
from rebar.storage.run_manifest import MANIFEST, PREVIOUS, RECORDS_TO_GO_ON_WITH, Origin, Progress, RunManifest
from rebar.storage.s3 import AbsentError, BucketError, BucketFolder, DamagedError
from rebar.training.checkpoint import link, sha256_of
from rebar.training.distributed import World, gather_from_all, wait_for_all

_READS = 3


def place_of(address: str, folder: RunFolder) -> BucketFolder:
    """Where the run of this folder lies below ``address``. Raises RebarError for what is no such address."""
    return BucketFolder(address, folder.path.resolve().name)


def read_manifest(place: BucketFolder) -> RunManifest | None:
    """What the run's place holds; None for nothing. Raises RebarError where that cannot be found out."""
    try:
        content = place.get(MANIFEST)
    except AbsentError:
        return None
    try:
        return RunManifest.from_json(content)
    except ValueError:
        raise RebarError(
            f"{place.url}/{MANIFEST} is damaged, or of another version of Rebar: give another --upload, or "
            "--resume none --overwrite to replace what is there"
        ) from None


def fetch_run(address: str, folder: RunFolder, world: World, *, resume: str, overwrite: bool) -> None:
    """Where the folder has no checkpoint and the run's place has, bring it here; ``resume`` is the setting.

    Every process must call it; the first one of each machine works. On several machines with folders of their own all
    take what is uploaded, unless all have the same checkpoint. Raises RebarError where the place cannot be read, and
    where starting afresh would replace an uploaded run unasked.
    """
    if not address or (resume != "auto" and (resume != "none" or overwrite)):
        return
    held = gather_from_all(_checksum(folder) if world.is_local_main else None, world)
    have = {checksum for checksum in held if checksum is not None}
    if len(have) == 1 and all(have) and resume == "auto":
        return
    place = place_of(address, folder)
    for our_turn in (world.is_main, world.is_local_main and not world.is_main):  # they may share the folder
        if our_turn:
            manifest = read_manifest(place)
            if manifest is not None and resume == "none":
                raise RebarError(
                    f"{place.url} holds an earlier run: leave out --resume none to go on with it, add --overwrite to "
                    "replace it, or choose another --logging.folder"
                )
            if manifest is not None and _checksum(folder) != manifest.last.sha256:
                _fetch(place, folder, manifest)
            if manifest is None and any(have):
                raise RebarError(
                    f"the machines of this run have not all the same checkpoint in {folder.path}, and there is none at "
                    f"{place.url}: put the folder on a file system that they share, or copy it to all"
                )
        wait_for_all(world)


def write_origin(folder: RunFolder, origin: Origin | None) -> None:
    """Keep in the folder how its run began; None: by itself. Raises RebarError where it cannot be written."""
    if origin is None:
        folder.origin.unlink(missing_ok=True)
        return
    with atomic_write(folder.origin) as (file,):
        file.write(json.dumps(asdict(origin), indent=2).encode() + b"\n")


def _checksum(folder: RunFolder) -> str:
    """Of the last checkpoint; empty where there is none."""
    if not folder.last_checkpoint.is_file():
        return ""
    with folder.last_checkpoint.open("rb") as file:
        return sha256_of(file)


def _fetch(place: BucketFolder, folder: RunFolder, manifest: RunManifest) -> None:
    """Records and best checkpoint, then the last one: its being there says that all is."""
    checkpoints = folder.last_checkpoint.parent
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RebarError(f"logging.folder {folder.path} cannot be written to: {error.strerror}") from None
    for name in RECORDS_TO_GO_ON_WITH:
        with suppress(AbsentError):
            content = place.get(name)
            with atomic_write(folder.path / name) as (file,):
                file.write(content)
    write_origin(folder, manifest.origin)
    for _ in range(_READS):
        try:
            _fetch_checkpoints(place, checkpoints, manifest)
            break
        except DamagedError as error:
            manifest = _without_damaged(place, manifest, error)
        except AbsentError:  # the run went on meanwhile, and removed what it replaced
            newer = read_manifest(place)
            if newer is None or newer == manifest:
                raise
            manifest = newer
    print(f"fetched   {place.url}/{manifest.last.object}, uploaded by {manifest.host}", flush=True)


def _fetch_checkpoints(place: BucketFolder, checkpoints: Path, manifest: RunManifest) -> None:
    last, best = manifest.last, manifest.checkpoints.get("best.pt")
    if best is not None and best != last:
        place.download(best.object, checkpoints / "best.pt", sha256=best.sha256)
    place.download(last.object, checkpoints / "last.pt", sha256=last.sha256)
    if best == last:
        link(checkpoints / "last.pt", checkpoints / "best.pt")


def _without_damaged(place: BucketFolder, manifest: RunManifest, error: DamagedError) -> RunManifest:
    """The run without the checkpoint that is damaged, in the bucket too; the one before the last takes its place."""
    sound = {name: stored for name, stored in manifest.checkpoints.items() if stored.object != error.name}
    last = sound.get("last.pt") or sound.pop(PREVIOUS, None)
    if last is None:
        raise error
    warn(f"{error}: going on without it")
    manifest = RunManifest(
        Progress(0, 0, 0.0), {**sound, "last.pt": last}, manifest.host, manifest.origin
    )  # how far it is, it says itself
    place.put(MANIFEST, io.BytesIO(manifest.to_json()))
    with suppress(BucketError):
        place.delete(error.name)
    return manifest
