"""Find, create, attach and detach EBS volumes of the project: ``volume create|attach``."""

import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from rebar.aws import commands
from rebar.aws.commands import EXPIRES, INSTANCE, Aws, Step, argument, command, positive
from rebar.aws.instances import EBS_GB_MONTH, get_instance, this_machine
from rebar.aws.tags import (
    DELETED_STATES,
    Identity,
    Resource,
    at_most_one,
    create_once,
    describe,
    find,
    get,
    identity_arguments,
    identity_of,
    tag_specification,
)
from rebar.storage.aws import AwsError

STATE_CHANGE_SECONDS = 300.0
USABLE = ("available", "in-use")
DEVICE_NAMES = tuple(f"/dev/sd{letter}" for letter in "fghijklmnop")
"""The names that AWS recommends for data volumes. On Nitro instances they exist in the API only."""
VOLUME = argument("volume", help="vol-…, or RUN/ROLE such as imagenet/beton")
ZONE_AND_TYPE = [
    argument("--zone", required=True, help="availability zone of the instance, such as us-east-1a"),
    argument("--type", default="gp3", choices=sorted(EBS_GB_MONTH), help="default: %(default)s"),
    argument("--throughput", type=positive, help="MiB/s; gp3 only, extra charge above 125"),
]


def find_volumes(aws: Aws, tags: Mapping[str, str]) -> list[Resource]:
    """Return all volumes with these tags that are not being deleted."""
    return [volume for volume in find(aws, "volume", tags) if volume["State"] not in DELETED_STATES]


def get_volume(aws: Aws, name: str) -> Resource:
    """Return the project's volume ``vol-…`` or ``RUN/ROLE``. Raises AwsError if there is none."""
    return get(aws, "volume", name, lambda tags: at_most_one(find_volumes(aws, tags), "VolumeId", name))


def attachment(volume: Resource) -> Mapping[str, Any] | None:
    """Return the attachment of a volume (also attaching or detaching), or None."""
    return next((each for each in volume.get("Attachments", ()) if each.get("State") != "detached"), None)


def require_attached(volume: Resource) -> None:
    """Raise AwsError if a volume is not attached to any instance."""
    if attachment(volume) is None:
        name = volume["VolumeId"]
        raise AwsError(f"{name} is not attached. Run volume attach {name} first.", code="volume-not-attached")


@command(
    "volume create",
    "--run imagenet --role beton --zone us-east-1a --size 200 --yes",
    *identity_arguments("data"),
    EXPIRES,
    *ZONE_AND_TYPE,
    argument("--size", required=True, type=positive, help="GiB"),
    argument("--iops", type=positive, help="gp3 only, extra charge above 3000"),
    argument("--encrypted", action="store_true", help="encrypt it (default: the account's setting)"),
)
def _create(aws: Aws, options: Namespace) -> None:
    """Create a blank volume. A repeated call finds it."""
    identity = identity_of(options)
    more = {"Throughput": options.throughput, "Iops": options.iops, "Encrypted": options.encrypted or None}
    create_volume(aws, identity, volume_request(identity, options.zone, options.size, options.type, **more))


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


def create_volume(aws: Aws, identity: Identity, request: Mapping[str, Any]) -> Resource | None:
    """Create a volume, or find the one that an earlier call created. Returns None if the plan was only printed."""
    zone, size, kind = request["AvailabilityZone"], request["Size"], request["VolumeType"]
    found = at_most_one(find_volumes(aws, identity.key), "VolumeId", str(identity))
    if found is not None:
        _require_same_request(found, request, identity)
        print(f"{found['VolumeId']} exists already: {size} GiB {kind} in {zone}")
        return wait_for_volume(aws, found["VolumeId"], *USABLE) if aws.executes else found
    origin = f"from {request['SnapshotId']}" if "SnapshotId" in request else "blank"
    cost = f", about ${EBS_GB_MONTH[kind] * size:.2f} a month" if kind in EBS_GB_MONTH else ""
    step = Step(f"create a {size} GiB {kind} volume in {zone}, {origin}{cost}", aws.ec2.create_volume, request)
    if not aws.confirm(f"volume {identity}", [step]):
        return None

    def create(token: str) -> tuple[str, Any]:
        made = step.execute(ClientToken=token)
        return made["VolumeId"], made["CreateTime"]

    volume_id = create_once(aws, "volume", create, request)
    print(f"created {volume_id}", flush=True)
    return wait_for_volume(aws, volume_id, *USABLE)


def _require_same_request(volume: Resource, request: Mapping[str, Any], identity: Identity) -> None:
    keys = ("AvailabilityZone", "Size", "VolumeType", "SnapshotId")
    pairs = {key: (volume.get(key) or "none", request.get(key) or "none") for key in keys}
    if different := [f"{key} is {old}, not {new}" for key, (old, new) in pairs.items() if old != new]:
        text = f"{identity} exists as {volume['VolumeId']}, but {', '.join(different)}"
        raise AwsError(f"{text}. Use the same values, or another --run or --role.", code="aws-exists-differently")


def wait_for_volume(aws: Aws, volume_id: str, *states: str) -> Resource:
    """Wait until the state of a volume is one of ``states``, and return it.

    boto3's waiters do not end in the state ``error``, in which a volume is created if its key cannot be used.
    """
    deadline = time.monotonic() + STATE_CHANGE_SECONDS
    while (volume := describe(aws, "volume", volume_id) or {"State": "deleted"})["State"] not in states:
        if volume["State"] in ("error", "deleted") or time.monotonic() > deadline:
            text = f"{volume_id} is {volume['State']}, not {' or '.join(states)}. Check the AWS console."
            raise AwsError(text, code="aws-wait-failed")
        time.sleep(commands.POLL_SECONDS)
    return volume


@command("volume attach", "imagenet/beton --yes", VOLUME, INSTANCE)
def _attach(aws: Aws, options: Namespace) -> None:
    """Attach an available volume to a running instance in its zone."""
    attach_volume(aws, get_volume(aws, options.volume), options.instance or this_machine().instance_id)


def attach_volume(aws: Aws, volume: Resource, instance_id: str) -> None:
    """Attach an available volume to a running instance in its zone.

    Raises AwsError if the volume is attached elsewhere, or the instance is not running or in another zone.
    """
    volume_id, attached = volume["VolumeId"], attachment(volume)
    if (
        attached is not None
        and attached["InstanceId"] == instance_id
        and attached["State"] in ("attached", "attaching")
    ):
        print(f"{volume_id} is already attached to {instance_id}")
        return
    if attached is not None:
        text = f"{volume_id} is {attached['State']} ({attached['InstanceId']}). Unmount and detach it there first."
        raise AwsError(text, code="volume-in-use")
    if volume["State"] != "available":
        raise AwsError(f"{volume_id} is {volume['State']}, not available. Try again later.", code="volume-in-use")
    instance = get_instance(aws, instance_id)
    _require_attachable(volume, instance)
    device = _free_device_name(instance)
    request = {"VolumeId": volume_id, "InstanceId": instance_id, "Device": device}
    step = Step(f"attach {volume_id} to {instance_id} as {device}", aws.ec2.attach_volume, request)
    if aws.confirm(f"volume {volume_id}", [step]):
        step.execute()
        wait_for_volume(aws, volume_id, "in-use")
        print(f"{volume_id} is attached to {instance_id}")


def _require_attachable(volume: Resource, instance: Resource) -> None:
    name, state, zone = instance["InstanceId"], instance["State"]["Name"], instance["Placement"]["AvailabilityZone"]
    if state != "running":
        raise AwsError(f"{name} is {state}. Start the instance first.", code="volume-not-attachable")
    if zone != volume["AvailabilityZone"]:
        text = f"{volume['VolumeId']} is in {volume['AvailabilityZone']}, but {name} in {zone}"
        advice = f"Copy it: snapshot create, then snapshot restore --zone {zone}."
        raise AwsError(f"{text}. {advice}", code="volume-not-attachable")


def _free_device_name(instance: Resource) -> str:
    used = {mapping["DeviceName"].replace("/dev/xvd", "/dev/sd") for mapping in instance.get("BlockDeviceMappings", ())}
    for name in DEVICE_NAMES:
        if name not in used:
            return name
    text = f"{instance['InstanceId']} has no free device name from {DEVICE_NAMES[0]} to {DEVICE_NAMES[-1]}"
    raise AwsError(f"{text}. Detach a volume first.", code="volume-not-attachable")


def detach_volume(aws: Aws, volume: Resource) -> None:
    """Detach an unmounted volume, never by force, and wait until it is available."""
    volume_id, attached = volume["VolumeId"], attachment(volume)
    if attached is None:
        print(f"{volume_id} is already detached")
        return
    request = {"VolumeId": volume_id, "InstanceId": attached["InstanceId"]}
    step = Step(f"detach {volume_id} from {attached['InstanceId']}", aws.ec2.detach_volume, request)
    if aws.confirm(f"volume {volume_id}", [step]):
        if attached["State"] != "detaching":
            step.execute()
        wait_for_volume(aws, volume_id, "available")
        print(f"{volume_id} is detached")
