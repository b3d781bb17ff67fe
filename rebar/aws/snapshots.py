"""Find EBS snapshots of the project, and delete volumes whose content is in a verified snapshot."""

import re
from collections.abc import Mapping
from typing import Any

from rebar.aws.client import Clients, call, paginate
from rebar.aws.cost import SNAPSHOT_GB_MONTH
from rebar.aws.plan import Mode, Step, confirm_plan
from rebar.aws.tags import (
    FROZEN,
    LAST_MOUNT,
    MANIFEST,
    PROJECT,
    ROLE,
    RUN,
    VERIFIED,
    filters,
    require_project_tags,
    tags_of,
    tags_of_name,
)
from rebar.aws.volumes import Volume, wait_for_volume
from rebar.storage.boto import AwsError

Snapshot = Mapping[str, Any]
SNAPSHOT_ID = re.compile(r"snap-[0-9a-f]{8,17}")


def find_snapshots(clients: Clients, tags: Mapping[str, str]) -> list[Snapshot]:
    """Return the account's snapshots with these tags, newest first."""
    found = paginate(
        "listing snapshots", clients.ec2, "describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=filters(tags)
    )
    return sorted(found, key=lambda snapshot: snapshot["StartTime"], reverse=True)


def describe_snapshot(clients: Clients, snapshot_id: str) -> Snapshot | None:
    """Return a snapshot by its id; None if it does not exist."""
    missing = ["InvalidSnapshot.NotFound"]
    ec2 = clients.ec2
    answer = call(f"describing {snapshot_id}", ec2.describe_snapshots, none_if=missing, SnapshotIds=[snapshot_id])
    return answer["Snapshots"][0] if answer and answer["Snapshots"] else None


def get_snapshot(clients: Clients, name: str, project: str) -> Snapshot:
    """Return the snapshot called ``snap-…``, or the newest of ``RUN/ROLE``. Raises AwsError if there is none."""
    if SNAPSHOT_ID.fullmatch(name):
        snapshot = describe_snapshot(clients, name)
    else:
        snapshot = next(iter(find_snapshots(clients, tags_of_name(name, project, "snapshot"))), None)
    if snapshot is None:
        text = f"snapshot {name} does not exist in this region. List all with 'python -m rebar.aws snapshot list'."
        raise AwsError(text, code="aws-not-found")
    require_project_tags(snapshot, snapshot["SnapshotId"], project)
    return snapshot


def require_completed(snapshot: Snapshot) -> None:
    """Raise AwsError if a snapshot is not completed."""
    if snapshot["State"] != "completed":
        text = f"{snapshot['SnapshotId']} is {snapshot['State']}, not completed. Try again later."
        raise AwsError(text, code="snapshot-incomplete")


def is_current(snapshot: Snapshot, volume: Volume) -> bool:
    """Return whether a snapshot has a volume's current content.

    That is the case if the volume was not mounted read-write since the snapshot was created or restored.
    """
    if snapshot["SnapshotId"] == volume.get("SnapshotId"):
        return LAST_MOUNT not in tags_of(volume)
    if snapshot["VolumeId"] != volume["VolumeId"] or FROZEN in tags_of(snapshot):
        return False
    return tags_of(snapshot).get(LAST_MOUNT) == tags_of(volume).get(LAST_MOUNT)


def require_deletable(clients: Clients, volume: Volume) -> str:
    """Return the id of a verified snapshot with a volume's content. Raises AwsError if there is none."""
    volume_id, tags = volume["VolumeId"], tags_of(volume)
    if volume["State"] != "available":
        raise AwsError(f"{volume_id} is {volume['State']}. Run volume detach first.", code="volume-in-use")
    for snapshot in find_snapshots(clients, {PROJECT: tags[PROJECT]}):
        if snapshot["State"] == "completed" and VERIFIED in tags_of(snapshot) and is_current(snapshot, volume):
            return str(snapshot["SnapshotId"])
    since = " taken after it was last mounted read-write" if LAST_MOUNT in tags else ""
    text = f"{volume_id} has no verified snapshot{since}. Run snapshot create and snapshot verify before deleting it"
    raise AwsError(f"{text}; delete it in the AWS console if its content is not needed.", code="volume-not-saved")


def delete_volume(clients: Clients, volume: Volume, mode: Mode) -> None:
    """Delete a volume. Raises AwsError unless its content is in a verified snapshot."""
    volume_id, snapshot_id = volume["VolumeId"], require_deletable(clients, volume)
    text = f"delete {volume_id} ({volume['Size']} GiB); its content is in {snapshot_id}, which is kept"
    step = Step(text, clients.ec2.delete_volume, {"VolumeId": volume_id})
    if confirm_plan(mode, f"volume {volume_id}", [step]):
        call(f"deleting {volume_id}", clients.ec2.delete_volume, VolumeId=volume_id)
        wait_for_volume(clients, volume_id, "deleted")
        print(f"deleted {volume_id}")


def as_table(snapshots: list[Snapshot]) -> str:
    """Return a table with one line per snapshot, and the maximum cost."""
    rows = [("snapshot", "run/role", "GiB", "started (UTC)", "state", "manifest", "verified")]
    for snapshot in snapshots:
        tags = tags_of(snapshot)
        started, verified = f"{snapshot['StartTime']:%Y-%m-%d %H:%M}", tags.get(VERIFIED, "no")[:16].replace("T", " ")
        name, manifest = f"{tags[RUN]}/{tags[ROLE]}", tags.get(MANIFEST, "none")[:12]
        size = str(snapshot["VolumeSize"])
        rows.append((snapshot["SnapshotId"], name, size, started, snapshot["State"], manifest, verified))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    cost = SNAPSHOT_GB_MONTH * sum(snapshot["VolumeSize"] for snapshot in snapshots)
    return "\n".join(
        [*lines, f"{len(snapshots)} snapshots; at most ${cost:.2f} a month: only stored blocks are billed"]
    )
