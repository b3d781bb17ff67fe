"""Restore snapshots, and verify them by comparing every file of a restored volume with the manifest."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from rebar.aws.client import Clients
from rebar.aws.cost import EBS_GB_MONTH, HOURS_PER_MONTH
from rebar.aws.devices import device_of, link_of, mounts_of, unmount
from rebar.aws.instances import Machine
from rebar.aws.manifest import Manifest, manifest_of, read_manifest
from rebar.aws.mount import mount_device, unmount_volume
from rebar.aws.plan import Mode, Step, confirm_plan
from rebar.aws.snapshots import Snapshot, delete_volume, require_completed
from rebar.aws.tags import MANIFEST, VERIFIED, Identity, expiry, format_time, now, set_tags, tags_of
from rebar.aws.volumes import (
    Volume,
    attach_volume,
    create_volume,
    detach_volume,
    find_volumes,
    refresh,
    volume_request,
)
from rebar.storage.boto import AwsError

COPY_ROLE = "verify"
COPY_DAYS = 1
FOLDER = Path("/run/rebar")


def restore_snapshot(
    clients: Clients,
    snapshot: Snapshot,
    mode: Mode,
    *,
    zone: str,
    run: str | None = None,
    role: str | None = None,
    size: int | None = None,
    kind: str = "gp3",
    throughput: int | None = None,
    expires: datetime | None = None,
) -> None:
    """Create a volume from a snapshot. Run, role and size (GiB) default to those of the snapshot."""
    tags, snapshot_id = tags_of(snapshot), snapshot["SnapshotId"]
    require_completed(snapshot)
    if size is not None and size < snapshot["VolumeSize"]:
        text = f"--size {size} is too small. {snapshot_id} needs at least {snapshot['VolumeSize']} GiB."
        raise AwsError(text, code="aws-option-invalid")
    if VERIFIED not in tags:
        print(f"note: {snapshot_id} has not been verified (snapshot verify)")
    old = Identity.of(snapshot)
    identity = replace(old, run=run or old.run, role=role or old.role, expires=expires)
    more = {"snapshot": snapshot_id, "manifest": tags.get(MANIFEST, ""), "Throughput": throughput}
    request = volume_request(identity, zone, size or snapshot["VolumeSize"], kind, **more)
    create_volume(clients, identity, request, mode)


def verify_snapshot(clients: Clients, snapshot: Snapshot, machine: Machine, mode: Mode, *, again: bool = False) -> None:
    """Restore a snapshot to a temporary volume, compare every file with the manifest, and tag the snapshot.

    The temporary volume is deleted afterwards. If a file differs, raises AwsError and keeps the volume, detached. A
    repeated call completes an interrupted one.
    """
    snapshot_id, tags, size = snapshot["SnapshotId"], tags_of(snapshot), snapshot["VolumeSize"]
    require_completed(snapshot)
    if MANIFEST not in tags:
        text = f"{snapshot_id} has no manifest. Only snapshots made by 'snapshot create' can be verified."
        raise AwsError(text, code="snapshot-incomplete")
    identity = replace(Identity.of(snapshot), run=snapshot_id, role=COPY_ROLE, expires=expiry(COPY_DAYS))
    request = volume_request(identity, machine.zone, size, snapshot=snapshot_id, manifest=tags[MANIFEST])
    if VERIFIED in tags and not again:
        print(f"{snapshot_id} was verified at {tags[VERIFIED]}; --again verifies it again")
        _remove_copies(clients, identity, mode)
        return
    cost = EBS_GB_MONTH["gp3"] * size / HOURS_PER_MONTH
    text = f"restore {snapshot_id} to a temporary volume in {machine.zone} (${cost:.3f}/h)"
    steps = [
        Step(text, clients.ec2.create_volume, request),
        Step(f"attach it to {machine.instance_id} and mount it read-only"),
        Step("read every file and compare its checksum with the manifest"),
        Step(f"unmount, detach, tag {snapshot_id} as verified, delete the temporary volume"),
    ]
    if not confirm_plan(mode, f"verification of {snapshot_id}", steps):
        return
    if VERIFIED in tags:
        set_tags(clients, snapshot_id, verified="")
    copy = create_volume(clients, identity, request, Mode.EXECUTE)
    assert copy is not None
    count = _compare(clients, copy, machine, tags)
    set_tags(clients, snapshot_id, verified=format_time(now()))
    print(f"verified {snapshot_id}: {count} files match the manifest")
    delete_volume(clients, refresh(clients, copy), Mode.EXECUTE)


def _compare(clients: Clients, copy: Volume, machine: Machine, tags: Mapping[str, str]) -> int:
    """Compare all files and return their number. The copy is detached in any case."""
    volume_id = copy["VolumeId"]
    attach_volume(clients, copy, machine.instance_id, Mode.EXECUTE)
    try:
        device, target = device_of(volume_id), FOLDER / volume_id
        if not mounts_of(device):
            mount_device(clients, volume_id, device, target, read_only=True)
        try:
            return _require_same_files(target, tags[MANIFEST], volume_id)
        finally:
            unmount(target)
            target.rmdir()
    finally:
        detach_volume(clients, refresh(clients, copy), Mode.EXECUTE)


def _require_same_files(target: Path, digest: str, volume_id: str) -> int:
    expected = read_manifest(target) or Manifest({}, {})
    differences = expected.differences(manifest_of(target))
    if expected.digest() != digest:
        differences.insert(0, f"the manifest is missing or not {digest[:12]}")
    if differences:
        listed = "; ".join(differences[:5]) + ("; …" if len(differences) > 5 else "")
        text = f"NOT verified: {len(differences)} files differ ({listed}). The copy is kept as {volume_id}."
        raise AwsError(text, code="snapshot-damaged")
    return len(expected.files)


def _remove_copies(clients: Clients, identity: Identity, mode: Mode) -> None:
    """Delete the copy that an interrupted call left after its verification."""
    for copy in find_volumes(clients, identity.key):
        if link_of(copy["VolumeId"]).exists():
            unmount_volume(copy, mode)
            detach_volume(clients, copy, mode)
        if mode is Mode.EXECUTE:
            delete_volume(clients, refresh(clients, copy), mode)
