"""A volume is attached within its zone, to a running machine; detached never by force."""

from collections.abc import Mapping
from typing import Any

from rebar.cloud.clients import Clients
from rebar.cloud.errors import CloudError, told_clearly
from rebar.cloud.plan import Call, Mode, Step, agreed
from rebar.cloud.volumes import Volume, attachment, describe_volume, get_volume, wait_for_volume
from rebar.cloud.waiting import wait_until

DEVICE_NAMES = tuple(f"/dev/sd{letter}" for letter in "fghijklmnop")
"""What AWS recommends for data volumes; on Nitro machines only the API sees these names."""
ATTACHED_SECONDS = 300.0


def describe_instance(clients: Clients, instance_id: str) -> Mapping[str, Any]:
    """One machine by its id; raises CloudError where there is none."""
    with told_clearly(f"looking at {instance_id}"):
        reservations = clients.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
    for reservation in reservations:
        for instance in reservation["Instances"]:
            found: Mapping[str, Any] = instance
            return found
    raise CloudError(f"there is no machine {instance_id} in this region")


def attach_volume(clients: Clients, name: str, project: str, instance_id: str, mode: Mode) -> Volume:
    """Attach an available volume to a running machine in its zone, and wait until it is.

    Raises CloudError where it is attached elsewhere, or the machine is stopped or in another zone.
    """
    volume = get_volume(clients, name, project)
    volume_id = volume["VolumeId"]
    where = attachment(volume)
    if where is not None and where["InstanceId"] == instance_id and where["State"] in ("attached", "attaching"):
        print(f"{volume_id} is attached to {instance_id} already")
        return _attached(clients, volume_id, instance_id) if mode is Mode.DO else volume
    if where is not None:
        raise CloudError(
            f"{volume_id} is {where['State']} ({where['InstanceId']}): detach it there first "
            f"(volume umount, then volume detach {volume_id}, on that machine)"
        )
    if volume["State"] != "available":
        raise CloudError(f"{volume_id} is {volume['State']}, not available: wait, or look in the AWS console")
    instance = describe_instance(clients, instance_id)
    _require_place(volume, instance)
    device = _free_device_name(instance)
    call = Call(clients.ec2, "attach_volume", {"VolumeId": volume_id, "InstanceId": instance_id, "Device": device})
    if not agreed(mode, f"volume {volume_id}", [Step(f"attach {volume_id} to {instance_id} as {device}", call)]):
        return volume
    call.send(f"attaching {volume_id} to {instance_id}")
    attached = _attached(clients, volume_id, instance_id)
    print(f"{volume_id} is attached to {instance_id}")
    return attached


def _require_place(volume: Volume, instance: Mapping[str, Any]) -> None:
    state, zone = instance["State"]["Name"], instance["Placement"]["AvailabilityZone"]
    if state != "running":
        raise CloudError(f"{instance['InstanceId']} is {state}: volumes are attached to running machines only")
    if zone != volume["AvailabilityZone"]:
        raise CloudError(
            f"{volume['VolumeId']} is in {volume['AvailabilityZone']}, {instance['InstanceId']} in {zone}: a volume "
            f"attaches within its zone only. Make a copy: snapshot create, then snapshot restore --zone {zone}"
        )


def _free_device_name(instance: Mapping[str, Any]) -> str:
    used = {mapping["DeviceName"].replace("/dev/xvd", "/dev/sd") for mapping in instance.get("BlockDeviceMappings", ())}
    for name in DEVICE_NAMES:
        if name not in used:
            return name
    raise CloudError(f"{instance['InstanceId']} has no free device name from {DEVICE_NAMES[0]} to {DEVICE_NAMES[-1]}")


def _attached(clients: Clients, volume_id: str, instance_id: str) -> Volume:
    def ready(volume: Volume | None) -> bool:
        where = attachment(volume) if volume else None
        if volume is None or (where is not None and where["InstanceId"] != instance_id):
            raise CloudError(f"{volume_id} was taken away while it was being attached")
        return where is not None and where["State"] == "attached"

    volume = wait_until(
        f"{volume_id} to be attached", lambda: describe_volume(clients, volume_id), ready, seconds=ATTACHED_SECONDS
    )
    assert volume is not None
    return volume


def detach_volume(clients: Clients, volume: Volume, mode: Mode) -> None:
    """Detach a volume that nobody has mounted, never by force, and wait until it is available."""
    volume_id, where = volume["VolumeId"], attachment(volume)
    if where is None:
        print(f"{volume_id} is detached already")
        return
    instance_id = where["InstanceId"]
    call = Call(clients.ec2, "detach_volume", {"VolumeId": volume_id, "InstanceId": instance_id})
    if not agreed(mode, f"volume {volume_id}", [Step(f"detach {volume_id} from {instance_id}", call)]):
        return
    if where["State"] != "detaching":
        call.send(f"detaching {volume_id}")
    wait_for_volume(clients, volume_id, "available")
    print(f"{volume_id} is detached")
