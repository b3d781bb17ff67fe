"""A volume is deleted last: only where a verified snapshot holds what it holds."""

from datetime import datetime

from rebar.cloud.clients import Clients
from rebar.cloud.errors import CloudError
from rebar.cloud.plan import Call, Mode, Step, agreed
from rebar.cloud.snapshots import Snapshot, find_snapshots
from rebar.cloud.tags import FROZEN, LAST_MOUNT, PROJECT, VERIFIED, as_time, tags_of
from rebar.cloud.volumes import Volume, wait_for_volume


def delete_volume(clients: Clients, volume: Volume, mode: Mode) -> None:
    """Delete a volume whose content a verified snapshot holds; raises CloudError for any other."""
    volume_id = volume["VolumeId"]
    snapshot_id = require_deletable(clients, volume)
    call = Call(clients.ec2, "delete_volume", {"VolumeId": volume_id})
    text = f"delete {volume_id} ({volume['Size']} GiB); verified {snapshot_id} holds its content and is kept"
    if not agreed(mode, f"volume {volume_id}", [Step(text, call)]):
        return
    call.send(f"deleting {volume_id}")
    wait_for_volume(clients, volume_id, "deleted")
    print(f"deleted {volume_id}")


def require_deletable(clients: Clients, volume: Volume) -> str:
    """The verified snapshot that holds a volume's content; raises CloudError where there is none."""
    volume_id, tags = volume["VolumeId"], tags_of(volume)
    if volume["State"] != "available":
        raise CloudError(f"{volume_id} is {volume['State']}: only an available volume is deleted (volume detach first)")
    last_mount = as_time(tags[LAST_MOUNT]) if LAST_MOUNT in tags else None
    for snapshot in _snapshots_of(clients, volume, tags[PROJECT]):
        if _holds(snapshot, volume, last_mount):
            return str(snapshot["SnapshotId"])
    since = f" taken after it was last mounted ({last_mount:%Y-%m-%d %H:%M:%S} UTC)" if last_mount else ""
    raise CloudError(
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
