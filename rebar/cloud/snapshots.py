"""EBS snapshots: found by id or by tags, only ours; restored to a volume."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rebar.cloud.clients import Clients
from rebar.cloud.creating import NewVolume, create_volume
from rebar.cloud.errors import CloudError, code_of, told_clearly
from rebar.cloud.plan import Mode
from rebar.cloud.prices import SNAPSHOT_GB_MONTH
from rebar.cloud.tags import MANIFEST, OWNER, PROJECT, ROLE, RUN, VERIFIED, Identity, filters, require_ours, tags_of
from rebar.cloud.volumes import PAGE, Volume
from rebar.cloud.waiting import wait_until

Snapshot = Mapping[str, Any]
SNAPSHOT_ID = re.compile(r"snap-[0-9a-f]{8,17}")
COMPLETE_SECONDS = 6 * 3600.0


def find_snapshots(clients: Clients, tags: Mapping[str, str]) -> list[Snapshot]:
    """All of the account's snapshots that carry these tags, newest first."""
    with told_clearly("looking for snapshots"):
        pages = clients.ec2.get_paginator("describe_snapshots").paginate(
            OwnerIds=["self"], Filters=filters(tags), PaginationConfig={"PageSize": PAGE}
        )
        found = [snapshot for page in pages for snapshot in page["Snapshots"]]
    return sorted(found, key=lambda snapshot: snapshot["StartTime"], reverse=True)


def describe_snapshot(clients: Clients, snapshot_id: str) -> Snapshot | None:
    """One snapshot by its id; None where there is none."""
    from botocore.exceptions import ClientError

    with told_clearly(f"looking at {snapshot_id}"):
        try:
            found: list[Snapshot] = clients.ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
        except ClientError as error:
            if code_of(error) == "InvalidSnapshot.NotFound":
                return None
            raise
    return found[0] if found else None


def get_snapshot(clients: Clients, name: str, project: str) -> Snapshot:
    """The snapshot called ``snap-…``, or the newest of ``RUN/ROLE``; raises CloudError where it is not ours."""
    snapshot: Snapshot | None
    if SNAPSHOT_ID.fullmatch(name):
        snapshot = describe_snapshot(clients, name)
    elif name.count("/") == 1:
        run, role = name.split("/")
        snapshot = next(iter(find_snapshots(clients, {PROJECT: project, RUN: run, ROLE: role})), None)
    else:
        raise CloudError(f"{name!r} names no snapshot: give snap-… or RUN/ROLE, such as imagenet/beton")
    if snapshot is None:
        raise CloudError(f"there is no snapshot {name} in this region; 'python -m rebar.cloud snapshot list' shows all")
    require_ours(snapshot, snapshot["SnapshotId"], project)
    return snapshot


def wait_until_complete(clients: Clients, snapshot_id: str) -> Snapshot:
    """Wait for a snapshot to be whole; raises CloudError where AWS could not make it."""

    def complete(snapshot: Snapshot | None) -> bool:
        if snapshot is not None and snapshot["State"] == "error":
            raise CloudError(
                f"AWS could not complete {snapshot_id}: {snapshot.get('StateMessage') or 'no reason given'}"
            )
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
        raise CloudError(f"{snapshot_id} is {snapshot['State']}: only a completed snapshot is restored")
    if size is not None and size < snapshot["VolumeSize"]:
        raise CloudError(f"--size {size} is too small: {snapshot_id} needs at least {snapshot['VolumeSize']} GiB")
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
