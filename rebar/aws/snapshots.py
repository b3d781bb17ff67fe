"""AWS's own time: what is compared with the time AWS gives a snapshot must not come from this machine's clock.

EBS snapshots: found by id or by tags, only ours; restored to a volume.

A volume is deleted last: only where a verified snapshot holds what it holds.
"""

import re
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from rebar.aws.client import AwsError, Clients, code_of, translate_aws_error, wait_until
from rebar.aws.cost import SNAPSHOT_GB_MONTH
from rebar.aws.plan import Call, Mode, Step, confirm_plan
from rebar.aws.tags import (
    FROZEN,
    LAST_MOUNT,
    MANIFEST,
    OWNER,
    PROJECT,
    ROLE,
    RUN,
    VERIFIED,
    Identity,
    as_time,
    filters,
    require_our_tags,
    tags_of,
)
from rebar.aws.volumes import PAGE, NewVolume, Volume, create_volume, wait_for_volume

SECOND = timedelta(seconds=1)
PAUSE_SECONDS = 0.1
LONGEST_SECONDS = 30.0


def aws_time(clients: Clients) -> datetime:
    """The time of EC2, rounded down to the second."""
    with translate_aws_error("asking AWS for the time"):
        answer = clients.ec2.describe_volumes(MaxResults=5)
    header = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    try:
        return parsedate_to_datetime(header).astimezone(timezone.utc)
    except ValueError:
        raise AwsError(f"AWS answered with the date {header!r}, which is none") from None


def wait_past(clients: Clients, moment: datetime) -> None:
    """Wait until AWS's time is after a moment at most seconds ahead; raises AwsError where it is far ahead."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while aws_time(clients) <= moment:
        if time.monotonic() > deadline:
            raise AwsError(f"the tag {LAST_MOUNT} says {moment:%Y-%m-%d %H:%M:%S} UTC, which AWS says has not come yet")
        time.sleep(PAUSE_SECONDS)


Snapshot = Mapping[str, Any]
SNAPSHOT_ID = re.compile(r"snap-[0-9a-f]{8,17}")
COMPLETE_SECONDS = 6 * 3600.0


def find_snapshots(clients: Clients, tags: Mapping[str, str]) -> list[Snapshot]:
    """All of the account's snapshots that carry these tags, newest first."""
    with translate_aws_error("looking for snapshots"):
        pages = clients.ec2.get_paginator("describe_snapshots").paginate(
            OwnerIds=["self"], Filters=filters(tags), PaginationConfig={"PageSize": PAGE}
        )
        found = [snapshot for page in pages for snapshot in page["Snapshots"]]
    return sorted(found, key=lambda snapshot: snapshot["StartTime"], reverse=True)


def describe_snapshot(clients: Clients, snapshot_id: str) -> Snapshot | None:
    """One snapshot by its id; None where there is none."""
    from botocore.exceptions import ClientError

    with translate_aws_error(f"looking at {snapshot_id}"):
        try:
            found: list[Snapshot] = clients.ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
        except ClientError as error:
            if code_of(error) == "InvalidSnapshot.NotFound":
                return None
            raise
    return found[0] if found else None


def get_snapshot(clients: Clients, name: str, project: str) -> Snapshot:
    """The snapshot called ``snap-…``, or the newest of ``RUN/ROLE``; raises AwsError where it is not ours."""
    snapshot: Snapshot | None
    if SNAPSHOT_ID.fullmatch(name):
        snapshot = describe_snapshot(clients, name)
    elif name.count("/") == 1:
        run, role = name.split("/")
        snapshot = next(iter(find_snapshots(clients, {PROJECT: project, RUN: run, ROLE: role})), None)
    else:
        raise AwsError(f"{name!r} names no snapshot: give snap-… or RUN/ROLE, such as imagenet/beton")
    if snapshot is None:
        raise AwsError(f"there is no snapshot {name} in this region; 'python -m rebar.aws snapshot list' shows all")
    require_our_tags(snapshot, snapshot["SnapshotId"], project)
    return snapshot


def wait_until_complete(clients: Clients, snapshot_id: str) -> Snapshot:
    """Wait for a snapshot to be whole; raises AwsError where AWS could not make it."""

    def complete(snapshot: Snapshot | None) -> bool:
        if snapshot is not None and snapshot["State"] == "error":
            raise AwsError(f"AWS could not complete {snapshot_id}: {snapshot.get('StateMessage') or 'no reason given'}")
        return snapshot is not None and snapshot["State"] == "completed"

    snapshot = wait_until(
        f"{snapshot_id} to be complete",
        lambda: describe_snapshot(clients, snapshot_id),
        complete,
        seconds=COMPLETE_SECONDS,
    )
    assert snapshot is not None
    return snapshot


def restore_snapshot(
    clients: Clients,
    snapshot: Snapshot,
    *,
    zone: str,
    mode: Mode,
    run: str | None = None,
    role: str | None = None,
    size: int | None = None,
    kind: str = "gp3",
    throughput: int | None = None,
    expires: datetime | None = None,
) -> Volume | None:
    """Make a volume from a snapshot, with the snapshot's run and role unless others are given; ``size`` in GiB."""
    tags, snapshot_id = tags_of(snapshot), snapshot["SnapshotId"]
    if snapshot["State"] != "completed":
        raise AwsError(f"{snapshot_id} is {snapshot['State']}: only a completed snapshot is restored")
    if size is not None and size < snapshot["VolumeSize"]:
        raise AwsError(f"--size {size} is too small: {snapshot_id} needs at least {snapshot['VolumeSize']} GiB")
    if VERIFIED not in tags:
        print(f"note: {snapshot_id} has not been verified (snapshot verify)")
    identity = Identity(tags[PROJECT], run or tags[RUN], role or tags[ROLE], tags.get(OWNER, ""), expires)
    new = NewVolume(
        identity,
        zone,
        size or snapshot["VolumeSize"],
        kind,
        throughput=throughput,
        snapshot=snapshot_id,
        manifest=tags.get(MANIFEST),
    )
    return create_volume(clients, new, mode)


def as_table(snapshots: list[Snapshot]) -> str:
    """One line a snapshot, and what they cost a month at most."""
    rows = [("snapshot", "run/role", "GiB", "started (UTC)", "state", "manifest", "verified")]
    for snapshot in snapshots:
        tags = tags_of(snapshot)
        rows.append(
            (
                snapshot["SnapshotId"],
                f"{tags[RUN]}/{tags[ROLE]}",
                str(snapshot["VolumeSize"]),
                f"{snapshot['StartTime']:%Y-%m-%d %H:%M}",
                snapshot["State"],
                tags.get(MANIFEST, "none")[:12],
                tags.get(VERIFIED, "no")[:16].replace("T", " "),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    most = SNAPSHOT_GB_MONTH * sum(snapshot["VolumeSize"] for snapshot in snapshots)
    lines.append(f"{len(snapshots)} snapshots; at most ${most:.2f} a month: only stored blocks are billed")
    return "\n".join(lines)


def delete_volume(clients: Clients, volume: Volume, mode: Mode) -> None:
    """Delete a volume whose content a verified snapshot holds; raises AwsError for any other."""
    volume_id = volume["VolumeId"]
    snapshot_id = require_deletable(clients, volume)
    call = Call(clients.ec2, "delete_volume", {"VolumeId": volume_id})
    text = f"delete {volume_id} ({volume['Size']} GiB); verified {snapshot_id} holds its content and is kept"
    if not confirm_plan(mode, f"volume {volume_id}", [Step(text, call)]):
        return
    call.send(f"deleting {volume_id}")
    wait_for_volume(clients, volume_id, "deleted")
    print(f"deleted {volume_id}")


def require_deletable(clients: Clients, volume: Volume) -> str:
    """The verified snapshot that holds a volume's content; raises AwsError where there is none."""
    volume_id, tags = volume["VolumeId"], tags_of(volume)
    if volume["State"] != "available":
        raise AwsError(f"{volume_id} is {volume['State']}: only an available volume is deleted (volume detach first)")
    last_mount = as_time(tags[LAST_MOUNT]) if LAST_MOUNT in tags else None
    for snapshot in _snapshots_of(clients, volume, tags[PROJECT]):
        if _holds(snapshot, volume, last_mount):
            return str(snapshot["SnapshotId"])
    since = f" taken after it was last mounted ({last_mount:%Y-%m-%d %H:%M:%S} UTC)" if last_mount else ""
    raise AwsError(
        f"{volume_id} is not deleted: no verified snapshot of it{since}. "
        "Make one (snapshot create, snapshot verify); what holds nothing of value is deleted in the AWS console"
    )


def _snapshots_of(clients: Clients, volume: Volume, project: str) -> list[Snapshot]:
    """Our snapshots of this volume, and the one it was restored from."""
    return [
        snapshot
        for snapshot in find_snapshots(clients, {PROJECT: project})
        if snapshot["VolumeId"] == volume["VolumeId"] or snapshot["SnapshotId"] == (volume.get("SnapshotId") or None)
    ]


def _holds(snapshot: Snapshot, volume: Volume, last_mount: datetime | None) -> bool:
    """Whether a snapshot is known to hold all that the volume does."""
    if snapshot["State"] != "completed" or VERIFIED not in tags_of(snapshot):
        return False
    if snapshot["SnapshotId"] == volume.get("SnapshotId"):
        return last_mount is None  # restored from it, and never written to
    if FROZEN in tags_of(snapshot):
        return False  # it stayed mounted, and may have been written to since
    started: datetime = snapshot["StartTime"]
    return last_mount is None or started > last_mount
