"""Create snapshots whose content is known: checksum all files, then prevent writes until the snapshot has started."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rebar.aws.client import Clients, call, run_program, wait
from rebar.aws.cost import SNAPSHOT_GB_MONTH
from rebar.aws.devices import device_of, frozen, mount_of, unmount
from rebar.aws.manifest import Manifest, Stamp, manifest_of, read_manifest, stamps_of, write_manifest
from rebar.aws.mount import mount_device
from rebar.aws.plan import Mode, Step, confirm_plan
from rebar.aws.snapshots import find_snapshots, is_current
from rebar.aws.tags import (
    FROZEN,
    LAST_MOUNT,
    MANIFEST,
    Identity,
    format_time,
    now,
    set_tags,
    tag_specification,
    tags_of,
)
from rebar.aws.volumes import Volume, refresh, require_attached
from rebar.storage.boto import AwsError

COMPLETE_MINUTES = 360.0


def create_snapshot(clients: Clients, volume: Volume, mode: Mode, *, keep_mounted: bool = False) -> None:
    """Create a snapshot of a volume attached to this machine, with a manifest of its files.

    The file system is unmounted first, and stays unmounted. With ``keep_mounted`` it is frozen until the snapshot has
    started. A repeated call completes an interrupted one.
    """
    volume_id = volume["VolumeId"]
    require_attached(volume)
    device = device_of(volume_id)
    mounted = mount_of(device)
    if keep_mounted and mounted is None:
        raise AwsError(f"{volume_id} is not mounted. Omit --keep-mounted.", code="volume-not-attached")
    if mounted is None or not mounted.writable:
        for snapshot in find_snapshots(clients, Identity.of(volume).key):
            if snapshot["State"] in ("pending", "completed") and is_current(snapshot, volume):
                print(f"{snapshot['SnapshotId']} already has the content of {volume_id}")
                return _wait_until_completed(clients, snapshot["SnapshotId"]) if mode is Mode.EXECUTE else None
    cost = SNAPSHOT_GB_MONTH * volume["Size"]
    steps = [
        Step(f"sync {volume_id}" if mounted else f"mount {volume_id} on a temporary folder"),
        Step("read all files, and write their checksums to rebar.sha256 on the volume"),
        Step("freeze it until the snapshot has started" if keep_mounted else "unmount it"),
        Step(
            f"create a snapshot of {volume_id} (at most ${cost:.2f} a month), and wait until it is completed",
            clients.ec2.create_snapshot,
            _request(volume, "not known yet", frozen=keep_mounted),
        ),
    ]
    if not confirm_plan(mode, f"snapshot of {volume_id}", steps):
        return None
    if mounted is not None:
        started = _start_snapshot(clients, volume, device, mounted.target, keep_mounted=keep_mounted)
    else:
        target = Path(tempfile.mkdtemp(prefix="rebar-snapshot-"))
        mount_device(clients, volume_id, device, target, read_only=False)
        try:
            started = _start_snapshot(clients, volume, device, target, keep_mounted=False)
        finally:
            if mount_of(device) is not None:
                unmount(target)
            target.rmdir()
    return _wait_until_completed(clients, started)


def _start_snapshot(clients: Clients, volume: Volume, device: Path, target: Path, *, keep_mounted: bool) -> str:
    """Write the manifest of a mounted file system, and start a snapshot while writes are blocked. Returns its id."""
    run_program("sync", "--file-system", str(target))
    stamps, manifest = take_manifest(target)
    digest = manifest.digest()
    volume = refresh(clients, volume)
    started = _find_frozen_snapshot(clients, volume, digest) if keep_mounted else None
    if started is None:
        with quiesced(target, stamps, device, keep_mounted=keep_mounted) as is_frozen:
            request = _request(volume, digest, frozen=is_frozen)
            answer = call(f"creating a snapshot of {volume['VolumeId']}", clients.ec2.create_snapshot, **request)
            started = str(answer["SnapshotId"])
    print(f"{started} has started: {len(manifest.files)} files, manifest {digest[:12]}")
    return started


def _wait_until_completed(clients: Clients, snapshot_id: str) -> None:
    print("waiting until it is completed; the volume can already be used again", flush=True)
    action = f"waiting until {snapshot_id} is completed"
    wait(action, clients.ec2, "snapshot_completed", minutes=COMPLETE_MINUTES, SnapshotIds=[snapshot_id])
    set_tags(clients, snapshot_id, completed=format_time(now()))
    print(f"{snapshot_id} is completed; 'snapshot verify {snapshot_id}' restores it and compares every file")


def take_manifest(target: Path) -> tuple[dict[str, Stamp], Manifest]:
    """Read all files below a mount point, and update the manifest in its root."""
    stamps = stamps_of(target)
    manifest = manifest_of(target)
    before = read_manifest(target)
    if before is None or before.differences(manifest):
        try:
            write_manifest(target, manifest)
        except OSError as error:
            text = f"{target}: the manifest cannot be written: {error.strerror or error}. Mount it read-write."
            raise AwsError(text, code="manifest-not-writable") from None
    return stamps, manifest


@contextmanager
def quiesced(target: Path, stamps: dict[str, Stamp], device: Path, *, keep_mounted: bool) -> Iterator[bool]:
    """Prevent writes to a file system in the block. Yields True if it is frozen, and so writable afterwards.

    It is unmounted, or frozen with ``keep_mounted``. Raises AwsError and restores the mount if a file changed since the
    stamps were taken.
    """
    mounted = mount_of(device)
    writable = mounted is not None and mounted.writable
    if keep_mounted and writable:
        with frozen(target):
            _require_unchanged(target, stamps)
            yield True
        return
    if writable:
        run_program("mount", "-o", "remount,ro", str(target))
    try:
        _require_unchanged(target, stamps)
        if not keep_mounted:
            unmount(target)
            run_program("blockdev", "--flushbufs", str(device))
    except BaseException:
        if writable and mount_of(device) is not None:
            run_program("mount", "-o", "remount,rw", str(target))
        raise
    yield False


def _require_unchanged(target: Path, stamps: dict[str, Stamp]) -> None:
    after = stamps_of(target)
    if changed := sorted(path for path in stamps.keys() | after.keys() if stamps.get(path) != after.get(path)):
        text = f"{target}: {len(changed)} files changed while their checksums were computed, such as {changed[0]}"
        raise AwsError(f"{text}. Stop the process that writes them, then try again.", code="snapshot-files-changed")


def _find_frozen_snapshot(clients: Clients, volume: Volume, digest: str) -> str | None:
    """Return the snapshot of these files that an interrupted call with ``keep_mounted`` started, or None."""
    for snapshot in find_snapshots(clients, Identity.of(volume).key | {MANIFEST: digest, FROZEN: "yes"}):
        if snapshot["VolumeId"] == volume["VolumeId"] and snapshot["State"] in ("pending", "completed"):
            return str(snapshot["SnapshotId"])
    return None


def _request(volume: Volume, digest: str, *, frozen: bool) -> dict[str, Any]:
    identity, tags = Identity.of(volume), tags_of(volume)
    more = {"frozen": "yes"} if frozen else {}
    if LAST_MOUNT in tags:
        more["last_mount"] = tags[LAST_MOUNT]
    return {
        "VolumeId": volume["VolumeId"],
        "Description": f"Rebar {identity}, manifest {digest[:12]}",
        "TagSpecifications": [tag_specification("snapshot", identity.tags(manifest=digest, **more))],
    }
