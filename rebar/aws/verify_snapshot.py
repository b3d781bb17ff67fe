"""A snapshot is verified when a volume restored from it has every file, byte for byte."""

from collections.abc import Mapping
from pathlib import Path

from rebar.aws.attach import attach_volume, detach_volume, device_of, is_here
from rebar.aws.client import AwsError, Clients
from rebar.aws.cost import EBS_GB_MONTH, HOURS_A_MONTH
from rebar.aws.filesystem import mount_device, unmount_volume
from rebar.aws.instances import Machine
from rebar.aws.manifest import Manifest, manifest_of, read_manifest
from rebar.aws.mount import mounts_of, unmount
from rebar.aws.plan import Call, Mode, Step, confirm_plan
from rebar.aws.snapshots import Snapshot, delete_volume
from rebar.aws.tags import MANIFEST, OWNER, PROJECT, VERIFIED, Identity, as_text, expiry, now, tags_of
from rebar.aws.volumes import NewVolume, Volume, create_volume, describe_volume, find_volumes, remove_tag, set_tags

ROLE_OF_COPY = "verify"
DAYS_OF_COPY = 1
FOLDER = Path("/run/rebar")


def verify_snapshot(clients: Clients, snapshot: Snapshot, machine: Machine, mode: Mode, *, again: bool = False) -> None:
    """Restore a snapshot to a temporary volume here, compare every file with the manifest, and tag the snapshot.

    The copy is deleted afterwards. Raises AwsError where anything differs; then the detached copy is kept.
    An interrupted call is finished by the next one.
    """
    snapshot_id, tags = snapshot["SnapshotId"], tags_of(snapshot)
    if snapshot["State"] != "completed":
        raise AwsError(f"{snapshot_id} is {snapshot['State']}: only a completed snapshot can be verified")
    if MANIFEST not in tags:
        raise AwsError(f"{snapshot_id} has no manifest: it was not taken by 'snapshot create' and cannot be verified")
    new = _copy_of(snapshot, tags, machine.zone)
    if VERIFIED in tags and not again:
        print(f"{snapshot_id} was verified at {tags[VERIFIED]}; --again does it once more")
        _clear(clients, new, mode)
        return
    cost = EBS_GB_MONTH["gp3"] * snapshot["VolumeSize"] / HOURS_A_MONTH
    steps = [
        Step(
            f"restore {snapshot_id} to a temporary volume in {machine.zone} (${cost:.3f} an hour)",
            Call(clients.ec2, "create_volume", new.request()),
        ),
        Step(f"attach it to {machine.instance_id} and mount it for reading only"),
        Step("read every file and compare its checksum with the manifest"),
        Step(f"unmount, detach, tag {snapshot_id} as verified, delete the temporary volume"),
    ]
    if not confirm_plan(mode, f"verification of {snapshot_id}", steps):
        return
    if VERIFIED in tags:
        remove_tag(clients, snapshot_id, VERIFIED)  # until it is known again
    volume = create_volume(clients, new, Mode.DO)
    assert volume is not None
    count = _compare(clients, volume, machine, tags)
    set_tags(clients, snapshot_id, {VERIFIED: as_text(now())})
    print(f"verified {snapshot_id}: {count} files are as they were")
    delete_volume(clients, _seen(clients, volume), Mode.DO)


def _copy_of(snapshot: Snapshot, tags: Mapping[str, str], zone: str) -> NewVolume:
    identity = Identity(
        tags[PROJECT], snapshot["SnapshotId"], ROLE_OF_COPY, tags.get(OWNER, ""), expires=expiry(DAYS_OF_COPY)
    )
    return NewVolume(identity, zone, snapshot["VolumeSize"], snapshot=snapshot["SnapshotId"], manifest=tags[MANIFEST])


def _compare(clients: Clients, volume: Volume, machine: Machine, tags: Mapping[str, str]) -> int:
    """The number of files that match; the copy is detached again, whatever happens."""
    volume_id = volume["VolumeId"]
    attached = attach_volume(clients, volume_id, tags[PROJECT], machine.instance_id, Mode.DO)
    try:
        device = device_of(volume_id)
        target = FOLDER / volume_id
        if not mounts_of(device):
            mount_device(clients, attached, device, target, read_only=True)
        try:
            return _require_alike(target, tags[MANIFEST], volume_id)
        finally:
            unmount(target)
            target.rmdir()
    finally:
        detach_volume(clients, _seen(clients, volume), Mode.DO)


def _require_alike(target: Path, digest: str, volume_id: str) -> int:
    expected = read_manifest(target) or Manifest({}, {})
    if expected.digest() != digest:
        raise AwsError(
            f"NOT verified: the manifest on the restored volume is missing or another ({digest[:12]} is wanted); "
            f"the copy is kept as {volume_id}"
        )
    differences = expected.differences(manifest_of(target))
    if differences:
        listed = "; ".join(differences[:5])
        raise AwsError(
            f"NOT verified: {len(differences)} files differ ({listed}{'; …' if len(differences) > 5 else ''}); "
            f"the copy is kept as {volume_id}"
        )
    return len(expected.files)


def _clear(clients: Clients, new: NewVolume, mode: Mode) -> None:
    """Remove the copy that a call killed after its verdict left behind."""
    for volume in find_volumes(clients, new.identity.key):
        volume_id = volume["VolumeId"]
        if is_here(volume_id):
            unmount_volume(volume, mode)
            detach_volume(clients, volume, mode)
        if mode is Mode.DO:
            delete_volume(clients, _seen(clients, volume), mode)


def _seen(clients: Clients, volume: Volume) -> Volume:
    found = describe_volume(clients, volume["VolumeId"])
    if found is None:
        raise AwsError(f"{volume['VolumeId']} has vanished")
    return found
