"""``snapshot list|restore|verify`` and ``volume delete``, which requires a verified snapshot of the volume."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rebar.aws.commands import EXPIRES, INSTANCE, Aws, Step, argument, command, positive, table
from rebar.aws.devices import device_of, link_of, mounts_of, unmount
from rebar.aws.instances import EBS_GB_MONTH, HOURS_PER_MONTH, SNAPSHOT_GB_MONTH, Machine, get_instance, this_machine
from rebar.aws.manifest import Manifest, manifest_of, read_manifest
from rebar.aws.mount import mount_device, unmount_volume
from rebar.aws.tags import (
    FROZEN,
    LAST_MOUNT,
    MANIFEST,
    PROJECT,
    VERIFIED,
    Identity,
    Resource,
    expiry,
    find,
    format_time,
    get,
    now,
    set_tags,
    tags_of,
)
from rebar.aws.volumes import (
    VOLUME,
    ZONE_AND_TYPE,
    attach_volume,
    create_volume,
    detach_volume,
    find_volumes,
    get_volume,
    volume_request,
    wait_for_volume,
)
from rebar.storage.aws import AwsError

SNAPSHOT = argument("snapshot", help="snap-…, or RUN/ROLE for its newest")
COPY_ROLE = "verify"
COPY_DAYS = 1
FOLDER = Path("/run/rebar")


def find_snapshots(aws: Aws, tags: Mapping[str, str]) -> list[Resource]:
    """Return the account's snapshots with these tags, newest first."""
    found = find(aws, "snapshot", tags, OwnerIds=["self"])
    return sorted(found, key=lambda snapshot: snapshot["StartTime"], reverse=True)


def _completed_snapshot(aws: Aws, name: str) -> Resource:
    """Return the snapshot ``snap-…``, or the newest of ``RUN/ROLE``. Raises AwsError if it is not completed."""
    snapshot = get(aws, "snapshot", name, lambda tags: next(iter(find_snapshots(aws, tags)), None))
    if snapshot["State"] != "completed":
        text = f"{snapshot['SnapshotId']} is {snapshot['State']}, not completed. Try again later."
        raise AwsError(text, code="snapshot-incomplete")
    return snapshot


def is_current(snapshot: Resource, volume: Resource) -> bool:
    """Return whether a snapshot has a volume's current content.

    True if the volume was not mounted read-write since the snapshot was created or restored.
    """
    if snapshot["SnapshotId"] == volume.get("SnapshotId"):
        return LAST_MOUNT not in tags_of(volume)
    if snapshot["VolumeId"] != volume["VolumeId"] or FROZEN in tags_of(snapshot):
        return False
    return tags_of(snapshot).get(LAST_MOUNT) == tags_of(volume).get(LAST_MOUNT)


# ------------------------------------------------------------------------------------------ delete


def require_deletable(aws: Aws, volume: Resource) -> str:
    """Return the id of a verified snapshot with a volume's content. Raises AwsError if there is none."""
    volume_id, tags = volume["VolumeId"], tags_of(volume)
    if volume["State"] != "available":
        raise AwsError(f"{volume_id} is {volume['State']}. Run volume detach first.", code="volume-in-use")
    for snapshot in find_snapshots(aws, {PROJECT: tags[PROJECT]}):
        if snapshot["State"] == "completed" and VERIFIED in tags_of(snapshot) and is_current(snapshot, volume):
            return str(snapshot["SnapshotId"])
    since = " taken after it was last mounted read-write" if LAST_MOUNT in tags else ""
    text = f"{volume_id} has no verified snapshot{since}. Run snapshot create and snapshot verify before deleting it"
    raise AwsError(f"{text}; delete it in the AWS console if its content is not needed.", code="volume-not-saved")


@command("volume delete", "imagenet/beton --yes", VOLUME)
def _delete(aws: Aws, options: Namespace) -> None:
    """Delete a volume whose content is in a verified snapshot."""
    delete_volume(aws, get_volume(aws, options.volume))


def delete_volume(aws: Aws, volume: Resource) -> None:
    """Delete a volume. Raises AwsError unless its content is in a verified snapshot."""
    volume_id, snapshot_id = volume["VolumeId"], require_deletable(aws, volume)
    text = f"delete {volume_id} ({volume['Size']} GiB); its content is in {snapshot_id}, which is kept"
    step = Step(text, aws.ec2.delete_volume, {"VolumeId": volume_id})
    if aws.confirm(f"volume {volume_id}", [step]):
        step.execute()
        wait_for_volume(aws, volume_id, "deleted")
        print(f"deleted {volume_id}")


# ------------------------------------------------------------------------------------------ list and restore


@command("snapshot list", "", changes=False)
def _list(aws: Aws, options: Namespace) -> None:
    """List the project's snapshots, newest first."""
    found = find_snapshots(aws, {PROJECT: aws.project})
    rows = [("snapshot", "run/role", "GiB", "started (UTC)", "state", "manifest", "verified")]
    for each in found:
        tags, size = tags_of(each), str(each["VolumeSize"])
        started, verified = f"{each['StartTime']:%Y-%m-%d %H:%M}", tags.get(VERIFIED, "no")[:16].replace("T", " ")
        name, manifest = str(Identity.of(each)), tags.get(MANIFEST, "none")[:12]
        rows.append((each["SnapshotId"], name, size, started, each["State"], manifest, verified))
    cost = SNAPSHOT_GB_MONTH * sum(each["VolumeSize"] for each in found)
    print(table(rows))
    print(f"{len(found)} snapshots; at most ${cost:.2f} a month: only stored blocks are billed")


@command(
    "snapshot restore",
    "imagenet/beton --zone us-east-1b --expires-days 2 --yes",
    SNAPSHOT,
    *ZONE_AND_TYPE,
    argument("--run", dest="run_name", metavar="NAME", help="default: the snapshot's"),
    argument("--role", help="default: the snapshot's"),
    argument("--size", type=positive, help="GiB (default and minimum: the snapshot's)"),
    EXPIRES,
)
def _restore(aws: Aws, options: Namespace) -> None:
    """Create a volume from a snapshot. A repeated call finds it."""
    snapshot = _completed_snapshot(aws, options.snapshot)
    tags, snapshot_id, size = tags_of(snapshot), snapshot["SnapshotId"], options.size or snapshot["VolumeSize"]
    if size < snapshot["VolumeSize"]:
        text = f"--size {size} is too small. {snapshot_id} needs at least {snapshot['VolumeSize']} GiB."
        raise AwsError(text, code="aws-option-invalid")
    if VERIFIED not in tags:
        print(f"note: {snapshot_id} has not been verified (snapshot verify)")
    old = Identity.of(snapshot)
    expires = expiry(options.expires_days) if options.expires_days else None
    identity = replace(old, run=options.run_name or old.run, role=options.role or old.role, expires=expires)
    more = {"snapshot": snapshot_id, "manifest": tags.get(MANIFEST, ""), "Throughput": options.throughput}
    create_volume(aws, identity, volume_request(identity, options.zone, size, options.type, **more))


# ------------------------------------------------------------------------------------------ verify


@command(
    "snapshot verify",
    "imagenet/beton --yes",
    SNAPSHOT,
    INSTANCE,
    argument("--again", action="store_true", help="verify it even if it was verified before"),
)
def _verify(aws: Aws, options: Namespace) -> None:
    """Restore a snapshot to a temporary volume on this machine and compare every file (as root).

    The temporary volume is deleted afterwards. If a file differs, it is kept, detached.
    """
    machine = this_machine() if options.instance is None else _machine(get_instance(aws, options.instance))
    snapshot = _completed_snapshot(aws, options.snapshot)
    snapshot_id, tags, size = snapshot["SnapshotId"], tags_of(snapshot), snapshot["VolumeSize"]
    if MANIFEST not in tags:
        text = f"{snapshot_id} has no manifest. Only snapshots made by 'snapshot create' can be verified."
        raise AwsError(text, code="snapshot-incomplete")
    identity = replace(Identity.of(snapshot), run=snapshot_id, role=COPY_ROLE, expires=expiry(COPY_DAYS))
    request = volume_request(identity, machine.zone, size, snapshot=snapshot_id, manifest=tags[MANIFEST])
    if VERIFIED in tags and not options.again:
        print(f"{snapshot_id} was verified at {tags[VERIFIED]}; --again verifies it again")
        _remove_copies(aws, identity)
        return
    cost = EBS_GB_MONTH["gp3"] * size / HOURS_PER_MONTH
    text = f"restore {snapshot_id} to a temporary volume in {machine.zone} (${cost:.3f}/h)"
    steps = [
        Step(text, aws.ec2.create_volume, request),
        Step(f"attach it to {machine.instance_id} and mount it read-only"),
        Step("read every file and compare its checksum with the manifest"),
        Step(f"unmount, detach, tag {snapshot_id} as verified, delete the temporary volume"),
    ]
    if not aws.confirm(f"verification of {snapshot_id}", steps):
        return
    if VERIFIED in tags:
        set_tags(aws, snapshot_id, verified="")
    copy = create_volume(aws, identity, request)
    assert copy is not None
    count = _compare(aws, copy, machine, tags[MANIFEST])
    set_tags(aws, snapshot_id, verified=format_time(now()))
    print(f"verified {snapshot_id}: {count} files match the manifest")
    delete_volume(aws, get_volume(aws, copy["VolumeId"]))


def _machine(instance: Resource) -> Machine:
    return Machine(instance["InstanceId"], instance["Placement"]["AvailabilityZone"])


def _compare(aws: Aws, copy: Resource, machine: Machine, digest: str) -> int:
    """Compare all files and return their number. The copy is detached in any case."""
    volume_id = copy["VolumeId"]
    attach_volume(aws, copy, machine.instance_id)
    try:
        device, target = device_of(volume_id), FOLDER / volume_id
        if not mounts_of(device):
            mount_device(aws, volume_id, device, target, read_only=True)
        try:
            return _require_same_files(target, digest, volume_id)
        finally:
            unmount(target)
            target.rmdir()
    finally:
        detach_volume(aws, get_volume(aws, volume_id))


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


def _remove_copies(aws: Aws, identity: Identity) -> None:
    """Delete the copy that an interrupted call left after its verification."""
    for copy in find_volumes(aws, identity.key):
        if link_of(copy["VolumeId"]).exists():
            unmount_volume(aws, copy)
            detach_volume(aws, copy)
        if aws.executes:
            delete_volume(aws, get_volume(aws, copy["VolumeId"]))
