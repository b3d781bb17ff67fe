"""``snapshot create``: snapshots with a manifest of their content.

All files are checksummed, then writes are prevented until the snapshot has started.
"""

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rebar.aws.commands import Aws, Step, argument, command, run_program, wait
from rebar.aws.devices import device_of, frozen, mount_of, unmount
from rebar.aws.instances import SNAPSHOT_GB_MONTH
from rebar.aws.manifest import Manifest, Stamp, manifest_of, read_manifest, stamps_of, write_manifest
from rebar.aws.mount import mount_device
from rebar.aws.snapshots import find_snapshots, is_current
from rebar.aws.tags import (
    FROZEN,
    LAST_MOUNT,
    MANIFEST,
    Identity,
    Resource,
    tag_specification,
    tags_of,
)
from rebar.aws.volumes import VOLUME, get_volume, require_attached
from rebar.storage.aws import AwsError

COMPLETE_MINUTES = 360.0


@command(
    "snapshot create",
    "imagenet/beton --yes",
    VOLUME,
    argument(
        "--keep-mounted",
        action="store_true",
        help="freeze instead of unmounting; such a snapshot does not permit deleting the volume",
    ),
)
def _create(aws: Aws, options: Namespace) -> None:
    """Store checksums of all files, unmount, create a snapshot, and wait until it is completed (as root).

    A repeated call completes an interrupted one.
    """
    volume, keep_mounted = get_volume(aws, options.volume), options.keep_mounted
    volume_id = volume["VolumeId"]
    require_attached(volume)
    device = device_of(volume_id)
    mounted = mount_of(device)
    if keep_mounted and mounted is None:
        raise AwsError(f"{volume_id} is not mounted. Omit --keep-mounted.", code="volume-not-attached")
    if mounted is None or not mounted.writable:
        for snapshot in find_snapshots(aws, Identity.of(volume).key):
            if snapshot["State"] in ("pending", "completed") and is_current(snapshot, volume):
                print(f"{snapshot['SnapshotId']} already has the content of {volume_id}")
                return _wait_until_completed(aws, snapshot["SnapshotId"]) if aws.executes else None
    cost = SNAPSHOT_GB_MONTH * volume["Size"]
    create = Step(
        f"create a snapshot of {volume_id} (at most ${cost:.2f} a month), and wait until it is completed",
        aws.ec2.create_snapshot,
        _request(volume, "not known yet", frozen=keep_mounted),
    )
    steps = [
        Step(f"sync {volume_id}" if mounted else f"mount {volume_id} on a temporary folder"),
        Step("read all files, and write their checksums to rebar.sha256 on the volume"),
        Step("freeze it until the snapshot has started" if keep_mounted else "unmount it"),
        create,
    ]
    if not aws.confirm(f"snapshot of {volume_id}", steps):
        return None
    if mounted is not None:
        started = _start_snapshot(aws, create, volume, mounted.target, keep_mounted=keep_mounted)
    else:
        target = Path(tempfile.mkdtemp(prefix="rebar-snapshot-"))
        mount_device(aws, volume_id, device, target, read_only=False)
        try:
            started = _start_snapshot(aws, create, volume, target, keep_mounted=False)
        finally:
            if mount_of(device) is not None:
                unmount(target)
            target.rmdir()
    return _wait_until_completed(aws, started)


def _start_snapshot(aws: Aws, create: Step, volume: Resource, target: Path, *, keep_mounted: bool) -> str:
    """Write the manifest of a mounted file system, and start a snapshot while writes are blocked. Returns its id."""
    run_program("sync", "--file-system", str(target))
    stamps, manifest = take_manifest(target)
    digest = manifest.digest()
    volume = get_volume(aws, volume["VolumeId"])  # mounting changed its tags
    started = _find_frozen_snapshot(aws, volume, digest) if keep_mounted else None
    if started is None:
        with quiesced(target, stamps, device_of(volume["VolumeId"]), keep_mounted=keep_mounted) as is_frozen:
            started = str(create.execute(**_request(volume, digest, frozen=is_frozen))["SnapshotId"])
    print(f"{started} has started: {len(manifest.files)} files, manifest {digest[:12]}")
    return started


def _wait_until_completed(aws: Aws, snapshot_id: str) -> None:
    print("waiting until it is completed; the volume can already be used again", flush=True)
    action = f"waiting until {snapshot_id} is completed"
    wait(action, aws.ec2, "snapshot_completed", minutes=COMPLETE_MINUTES, SnapshotIds=[snapshot_id])
    print(f"{snapshot_id} is completed; 'snapshot verify {snapshot_id}' restores it and compares every file")


def take_manifest(target: Path) -> tuple[dict[str, Stamp], Manifest]:
    """Read all files below a mount point, and update the manifest in its root."""
    stamps = stamps_of(target)
    manifest = manifest_of(target)
    before = read_manifest(target)
    if before is None or before.differences(manifest):
        write_manifest(target, manifest)
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


def _find_frozen_snapshot(aws: Aws, volume: Resource, digest: str) -> str | None:
    """Return the snapshot of these files that an interrupted call with ``keep_mounted`` started, or None."""
    for snapshot in find_snapshots(aws, Identity.of(volume).key | {MANIFEST: digest, FROZEN: "yes"}):
        if snapshot["VolumeId"] == volume["VolumeId"] and snapshot["State"] in ("pending", "completed"):
            return str(snapshot["SnapshotId"])
    return None


def _request(volume: Resource, digest: str, *, frozen: bool) -> dict[str, Any]:
    identity, tags = Identity.of(volume), tags_of(volume)
    more = {"frozen": "yes"} if frozen else {}
    if LAST_MOUNT in tags:
        more["last_mount"] = tags[LAST_MOUNT]
    return {
        "VolumeId": volume["VolumeId"],
        "Description": f"Rebar {identity}, manifest {digest[:12]}",
        "TagSpecifications": [tag_specification("snapshot", identity.tags(manifest=digest, **more))],
    }
