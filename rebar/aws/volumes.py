"""Find, create, attach and detach EBS volumes of the project."""

import re
import time
from collections.abc import Mapping
from typing import Any

from rebar.aws.client import Clients, call, paginate, wait
from rebar.aws.cost import EBS_GB_MONTH
from rebar.aws.plan import Mode, Step, confirm_plan
from rebar.aws.tags import (
    PROJECT,
    Identity,
    at_most_one,
    create_once,
    filters,
    require_project_tags,
    tag_specification,
    tags_of,
    tags_of_name,
)
from rebar.storage.boto import AwsError

Volume = Mapping[str, Any]
VOLUME_ID = re.compile(r"vol-[0-9a-f]{8,17}")
STATE_CHANGE_MINUTES = 5.0
VISIBILITY_DELAY_SECONDS = 15.0
"""DescribeVolumes may not return a new volume for this long (eventual consistency)."""
DEVICE_NAMES = tuple(f"/dev/sd{letter}" for letter in "fghijklmnop")
"""The names that AWS recommends for data volumes. On Nitro instances they exist in the API only."""


def find_volumes(clients: Clients, tags: Mapping[str, str]) -> list[Volume]:
    """Return all volumes with these tags that are not being deleted."""
    found = paginate("listing volumes", clients.ec2, "describe_volumes", "Volumes", Filters=filters(tags))
    return [volume for volume in found if volume["State"] not in ("deleting", "deleted")]


def describe_volume(clients: Clients, volume_id: str) -> Volume | None:
    """Return a volume by its id; None if it does not exist."""
    missing = ["InvalidVolume.NotFound"]
    ec2 = clients.ec2
    answer = call(f"describing {volume_id}", ec2.describe_volumes, none_if=missing, VolumeIds=[volume_id])
    return answer["Volumes"][0] if answer and answer["Volumes"] else None


def get_volume(clients: Clients, name: str, project: str) -> Volume:
    """Return the project's volume ``vol-…`` or ``RUN/ROLE``. Raises AwsError if there is none."""
    if VOLUME_ID.fullmatch(name):
        volume = describe_volume(clients, name)
    else:
        volume = at_most_one(find_volumes(clients, tags_of_name(name, project, "volume")), "VolumeId", name)
    if volume is None:
        text = f"volume {name} does not exist in this region. List all with 'python -m rebar.aws cost sweep'."
        raise AwsError(text, code="aws-not-found")
    require_project_tags(volume, volume["VolumeId"], project)
    return volume


def refresh(clients: Clients, volume: Volume) -> Volume:
    """Return the current description of a volume."""
    return get_volume(clients, volume["VolumeId"], tags_of(volume)[PROJECT])


def attachment(volume: Volume) -> Mapping[str, Any] | None:
    """Return the attachment of a volume (also attaching or detaching), or None."""
    return next((each for each in volume.get("Attachments", ()) if each.get("State") != "detached"), None)


def require_attached(volume: Volume) -> None:
    """Raise AwsError if a volume is not attached to any instance."""
    if attachment(volume) is None:
        name = volume["VolumeId"]
        raise AwsError(f"{name} is not attached. Run volume attach {name} first.", code="volume-not-attached")


def volume_request(
    identity: Identity, zone: str, size: int, kind: str = "gp3", *, snapshot: str = "", manifest: str = "", **more: Any
) -> dict[str, Any]:
    """Return the parameters of CreateVolume without client token; ``size`` in GiB. Skips None values in ``more``."""
    tags = {} if snapshot else {"filesystem": "blank"}
    if manifest:
        tags["manifest"] = manifest
    optional = {"SnapshotId": snapshot or None, **more}
    return {
        "AvailabilityZone": zone,
        "Size": size,
        "VolumeType": kind,
        "TagSpecifications": [tag_specification("volume", identity.tags(**tags))],
        **{key: value for key, value in optional.items() if value is not None},
    }


def create_volume(clients: Clients, identity: Identity, request: Mapping[str, Any], mode: Mode) -> Volume | None:
    """Create a volume, or find the one that an earlier call created. Returns None if the plan was only printed."""
    zone, size, kind = request["AvailabilityZone"], request["Size"], request["VolumeType"]
    found = at_most_one(find_volumes(clients, identity.key), "VolumeId", str(identity))
    if found is not None:
        _require_same_request(found, request, identity)
        print(f"{found['VolumeId']} exists already: {size} GiB {kind} in {zone}")
        return _available(clients, found["VolumeId"]) if mode is Mode.EXECUTE else found
    origin = f"from {request['SnapshotId']}" if "SnapshotId" in request else "blank"
    cost = f", about ${EBS_GB_MONTH[kind] * size:.2f} a month" if kind in EBS_GB_MONTH else ""
    text = f"create a {size} GiB {kind} volume in {zone}, {origin}{cost}"
    if not confirm_plan(mode, f"volume {identity}", [Step(text, clients.ec2.create_volume, request)]):
        return None

    def create(token: str) -> str:
        answer = call("creating a volume", clients.ec2.create_volume, **request, ClientToken=token)
        return str(answer["VolumeId"])

    volume_id = create_once(create, lambda created: _is_deleted(clients, created), request)
    print(f"created {volume_id}", flush=True)
    return _available(clients, volume_id)


def _is_deleted(clients: Clients, volume_id: str) -> bool:
    deadline = time.monotonic() + VISIBILITY_DELAY_SECONDS
    while (volume := describe_volume(clients, volume_id)) is None:
        if time.monotonic() > deadline:
            return True
        time.sleep(0.5)
    return volume["State"] in ("deleting", "deleted")


def _require_same_request(volume: Volume, request: Mapping[str, Any], identity: Identity) -> None:
    keys = ("AvailabilityZone", "Size", "VolumeType", "SnapshotId")
    pairs = {key: (volume.get(key) or "none", request.get(key) or "none") for key in keys}
    if different := [f"{key} is {old}, not {new}" for key, (old, new) in pairs.items() if old != new]:
        text = f"{identity} exists as {volume['VolumeId']}, but {', '.join(different)}"
        raise AwsError(f"{text}. Use the same values, or another --run or --role.", code="aws-exists-differently")


def _available(clients: Clients, volume_id: str) -> Volume:
    """Wait until a volume can be used, and return it."""
    volume = describe_volume(clients, volume_id)
    if volume is None or volume["State"] != "in-use":
        wait_for_volume(clients, volume_id, "available")
        volume = describe_volume(clients, volume_id)
    assert volume is not None
    return volume


def wait_for_volume(clients: Clients, volume_id: str, state: str) -> None:
    """Wait until a volume is ``available``, ``in_use`` or ``deleted``."""
    action = f"waiting until {volume_id} is {state.replace('_', ' ')}"
    wait(action, clients.ec2, f"volume_{state}", minutes=STATE_CHANGE_MINUTES, VolumeIds=[volume_id])


def describe_instance(clients: Clients, instance_id: str) -> Mapping[str, Any]:
    """Return an instance by its id. Raises AwsError if it does not exist."""
    answer = call(f"describing {instance_id}", clients.ec2.describe_instances, InstanceIds=[instance_id])
    for reservation in answer["Reservations"]:
        for instance in reservation["Instances"]:
            found: Mapping[str, Any] = instance
            return found
    raise AwsError(f"instance {instance_id} does not exist in this region.", code="aws-not-found")


def attach_volume(clients: Clients, volume: Volume, instance_id: str, mode: Mode) -> None:
    """Attach an available volume to a running instance in its zone.

    Raises AwsError if the volume is attached elsewhere, or the instance is not running or in another zone.
    """
    volume_id, where = volume["VolumeId"], attachment(volume)
    if where is not None and where["InstanceId"] == instance_id and where["State"] in ("attached", "attaching"):
        print(f"{volume_id} is already attached to {instance_id}")
        return
    if where is not None:
        text = f"{volume_id} is {where['State']} ({where['InstanceId']}). Unmount and detach it on that instance first."
        raise AwsError(text, code="volume-in-use")
    if volume["State"] != "available":
        raise AwsError(f"{volume_id} is {volume['State']}, not available. Try again later.", code="volume-in-use")
    instance = describe_instance(clients, instance_id)
    _require_attachable(volume, instance)
    device = _free_device_name(instance)
    request = {"VolumeId": volume_id, "InstanceId": instance_id, "Device": device}
    step = Step(f"attach {volume_id} to {instance_id} as {device}", clients.ec2.attach_volume, request)
    if confirm_plan(mode, f"volume {volume_id}", [step]):
        call(f"attaching {volume_id} to {instance_id}", clients.ec2.attach_volume, **request)
        wait_for_volume(clients, volume_id, "in_use")
        print(f"{volume_id} is attached to {instance_id}")


def _require_attachable(volume: Volume, instance: Mapping[str, Any]) -> None:
    name, state, zone = instance["InstanceId"], instance["State"]["Name"], instance["Placement"]["AvailabilityZone"]
    if state != "running":
        raise AwsError(f"{name} is {state}. Start the instance first.", code="volume-not-attachable")
    if zone != volume["AvailabilityZone"]:
        text = f"{volume['VolumeId']} is in {volume['AvailabilityZone']}, but {name} in {zone}"
        advice = f"Copy it: snapshot create, then snapshot restore --zone {zone}."
        raise AwsError(f"{text}. {advice}", code="volume-not-attachable")


def _free_device_name(instance: Mapping[str, Any]) -> str:
    used = {mapping["DeviceName"].replace("/dev/xvd", "/dev/sd") for mapping in instance.get("BlockDeviceMappings", ())}
    for name in DEVICE_NAMES:
        if name not in used:
            return name
    text = f"{instance['InstanceId']} has no free device name from {DEVICE_NAMES[0]} to {DEVICE_NAMES[-1]}"
    raise AwsError(f"{text}. Detach a volume first.", code="volume-not-attachable")


def detach_volume(clients: Clients, volume: Volume, mode: Mode) -> None:
    """Detach an unmounted volume, never by force, and wait until it is available."""
    volume_id, where = volume["VolumeId"], attachment(volume)
    if where is None:
        print(f"{volume_id} is already detached")
        return
    request = {"VolumeId": volume_id, "InstanceId": where["InstanceId"]}
    step = Step(f"detach {volume_id} from {where['InstanceId']}", clients.ec2.detach_volume, request)
    if confirm_plan(mode, f"volume {volume_id}", [step]):
        if where["State"] != "detaching":
            call(f"detaching {volume_id}", clients.ec2.detach_volume, **request)
        wait_for_volume(clients, volume_id, "available")
        print(f"{volume_id} is detached")
