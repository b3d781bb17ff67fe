"""Taking a snapshot that holds what it should: checksums first, then nothing may write until it is begun."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rebar.aws.attach import device_of
from rebar.aws.client import AwsError, Clients, run_program
from rebar.aws.cost import SNAPSHOT_GB_MONTH
from rebar.aws.filesystem import frozen, mount_device
from rebar.aws.manifest import Manifest, Stamp, manifest_of, read_manifest, stamps_of, write_manifest
from rebar.aws.mount import only_mount_of, unmount
from rebar.aws.plan import Call, Mode, Step, confirm_plan
from rebar.aws.snapshots import Snapshot, find_snapshots, wait_past, wait_until_complete
from rebar.aws.tags import (
    COMPLETED,
    FROZEN,
    LAST_MOUNT,
    MANIFEST,
    OWNER,
    PROJECT,
    ROLE,
    RUN,
    Identity,
    as_text,
    as_time,
    now,
    specification,
    tags_of,
)
from rebar.aws.volumes import Volume, describe_volume, require_attached, set_tags


def create_snapshot(clients: Clients, volume: Volume, mode: Mode, *, keep_mounted: bool = False) -> Snapshot | None:
    """Snapshot a volume attached to this machine, with a manifest; None where only the plan was shown.

    The file system is unmounted before, and stays so; ``keep_mounted``: frozen instead, for the second that
    beginning a snapshot takes. An interrupted call is finished by the next one.
    """
    volume_id = volume["VolumeId"]
    require_attached(volume)
    device = device_of(volume_id)
    mounted = only_mount_of(device)
    if keep_mounted and mounted is None:
        raise AwsError(f"{volume_id} is not mounted: leave --keep-mounted away")
    if (mounted is None or not mounted.writable) and (found := _taken_since_last_mount(clients, volume)):
        print(f"{found} holds what {volume_id} holds")
        return _complete(clients, found) if mode is Mode.DO else None
    if not confirm_plan(mode, f"snapshot of {volume_id}", _steps(clients, volume, mounted is not None, keep_mounted)):
        return None
    if mounted is not None:
        begun = _begin_from(clients, volume_id, device, mounted.target, keep_mounted=keep_mounted)
    else:
        target = Path(tempfile.mkdtemp(prefix="rebar-snapshot-"))
        mount_device(clients, volume, device, target, read_only=False)
        try:
            begun = _begin_from(clients, volume_id, device, target, keep_mounted=False)
        finally:
            if only_mount_of(device) is not None:
                unmount(target)
            target.rmdir()
    return _complete(clients, begun)


def _begin_from(clients: Clients, volume_id: str, device: Path, target: Path, *, keep_mounted: bool) -> str:
    """The snapshot of what is mounted at a folder, begun when the manifest is right and nothing can write."""
    run_program("sync", "--file-system", str(target))
    stamps, manifest = take_manifest(target)
    tags = tags_of(describe_volume(clients, volume_id) or {})
    if LAST_MOUNT in tags:
        wait_past(clients, as_time(tags[LAST_MOUNT]))  # else it would not count as newer
    begun = _begun_while_mounted(clients, volume_id, tags, manifest) if keep_mounted else None
    if begun is None:
        with standing_still(target, stamps, device, keep_mounted=keep_mounted) as goes_on_changing:
            call = _call(clients, volume_id, tags, manifest.digest(), frozen=goes_on_changing)
            begun = str(call.send(f"snapshotting {volume_id}")["SnapshotId"])
    print(f"{begun} has begun: {len(manifest.files)} files, manifest {manifest.digest()[:12]}")
    return begun


def _complete(clients: Clients, snapshot_id: str) -> Snapshot:
    print("waiting until it is complete; the volume may be used again", flush=True)
    snapshot = wait_until_complete(clients, snapshot_id)
    set_tags(clients, snapshot_id, {COMPLETED: as_text(now())})
    print(f"{snapshot_id} is complete; 'snapshot verify {snapshot_id}' restores it and compares every file")
    return snapshot


def _steps(clients: Clients, volume: Volume, is_mounted: bool, keep_mounted: bool) -> list[Step]:
    volume_id = volume["VolumeId"]
    quiet = "freeze it, and thaw it once the snapshot has begun" if keep_mounted else "unmount it"
    cost = SNAPSHOT_GB_MONTH * volume["Size"]
    return [
        Step(f"write out {volume_id}" if is_mounted else f"mount {volume_id} on a temporary folder"),
        Step("read all files, and write their checksums to rebar.sha256 on it"),
        Step(quiet),
        Step(
            f"snapshot {volume_id} (at most ${cost:.2f} a month), and wait until it is complete",
            _call(clients, volume_id, tags_of(volume), "not taken yet", frozen=keep_mounted),
        ),
    ]


def take_manifest(target: Path) -> tuple[dict[str, Stamp], Manifest]:
    """Read all files below a mount, and see to it that the manifest on it says what they hold."""
    stamps = stamps_of(target)
    manifest = manifest_of(target)
    before = read_manifest(target)
    if before is None or before.differences(manifest):
        try:
            write_manifest(target, manifest)
        except OSError as error:
            raise AwsError(f"{target}: the manifest cannot be written: {error.strerror or error}") from None
    return stamps, manifest


@contextmanager
def standing_still(target: Path, stamps: dict[str, Stamp], device: Path, *, keep_mounted: bool) -> Iterator[bool]:
    """While the block runs nothing writes to a file system, and all is as it was when the stamps were taken.

    Yields whether it can be written to afterwards without being mounted anew. Raises AwsError where a file
    was touched since; the file system is left as it was found.
    """
    mounted = only_mount_of(device)
    if keep_mounted and mounted is not None and mounted.writable:
        with frozen(target):
            _require_untouched(target, stamps)
            yield True
        return
    was_writable = mounted is not None and mounted.writable
    if was_writable:
        run_program("mount", "-o", "remount,ro", str(target))
    try:
        _require_untouched(target, stamps)
        if not keep_mounted:
            unmount(target)
            run_program("blockdev", "--flushbufs", str(device))
    except BaseException:
        if was_writable and only_mount_of(device) is not None:
            run_program("mount", "-o", "remount,rw", str(target))
        raise
    yield False


def _require_untouched(target: Path, stamps: dict[str, Stamp]) -> None:
    after = stamps_of(target)
    touched = sorted(path for path in stamps.keys() | after.keys() if stamps.get(path) != after.get(path))
    if touched:
        raise AwsError(
            f"{target}: {len(touched)} files changed while their checksums were taken, such as {touched[0]}: "
            "stop what writes there, then try again"
        )


def _taken_since_last_mount(clients: Clients, volume: Volume) -> str | None:
    """The snapshot of all that an unmounted volume holds, which an earlier call may not have waited for."""
    tags = tags_of(volume)
    last_mount = as_time(tags[LAST_MOUNT]) if LAST_MOUNT in tags else None
    for snapshot in find_snapshots(clients, {key: tags[key] for key in (PROJECT, RUN, ROLE)}):
        if snapshot["VolumeId"] != volume["VolumeId"] or snapshot["State"] not in ("pending", "completed"):
            continue
        if FROZEN not in tags_of(snapshot) and (last_mount is None or snapshot["StartTime"] > last_mount):
            return str(snapshot["SnapshotId"])
    return None


def _begun_while_mounted(clients: Clients, volume_id: str, tags: dict[str, str], manifest: Manifest) -> str | None:
    """The snapshot of the very same files that an earlier call began while the volume was mounted."""
    same = {PROJECT: tags[PROJECT], RUN: tags[RUN], ROLE: tags[ROLE], MANIFEST: manifest.digest(), FROZEN: "yes"}
    for snapshot in find_snapshots(clients, same):
        if snapshot["VolumeId"] == volume_id and snapshot["State"] in ("pending", "completed"):
            return str(snapshot["SnapshotId"])
    return None


def _call(clients: Clients, volume_id: str, tags: dict[str, str], digest: str, *, frozen: bool) -> Call:
    identity = Identity(tags[PROJECT], tags[RUN], tags[ROLE], tags.get(OWNER, ""))
    more = {"frozen": "yes"} if frozen else {}
    request: dict[str, Any] = {
        "VolumeId": volume_id,
        "Description": f"Rebar {identity.run}/{identity.role}, manifest {digest[:12]}",
        "TagSpecifications": [specification("snapshot", identity.tags(manifest=digest, **more))],
    }
    return Call(clients.ec2, "create_snapshot", request)
