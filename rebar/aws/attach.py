"""Which block device is a volume: known by the volume's serial number, never guessed from a name.

A volume is attached within its zone, to a running machine; detached never by force.
"""

import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rebar.aws.client import AwsError, Clients, translate_aws_error, wait_until
from rebar.aws.plan import Call, Mode, Step, confirm_plan
from rebar.aws.volumes import Volume, attachment, describe_volume, get_volume, wait_for_volume

BY_ID = Path("/dev/disk/by-id")
SYSFS = Path("/sys/class/block")
PREFIX = "nvme-Amazon_Elastic_Block_Store_"
UDEV_SECONDS = 60.0


def link_of(volume_id: str) -> Path:
    """The link that udev makes for a volume."""
    return BY_ID / (PREFIX + volume_id.replace("-", ""))


def is_here(volume_id: str) -> bool:
    """Whether this machine has the volume's device."""
    return link_of(volume_id).exists()


def device_of(volume_id: str, *, seconds: float | None = None) -> Path:
    """The block device of a volume attached to this machine; waits for udev to make its link.

    Raises AwsError where there is none, or where the device's own serial number says otherwise.
    """
    link = link_of(volume_id)
    deadline = time.monotonic() + (UDEV_SECONDS if seconds is None else seconds)
    while not link.exists():
        if time.monotonic() > deadline:
            raise AwsError(
                f"{volume_id} is not on this machine: there is no {link}. Attach it (volume attach); machines older "
                "than Nitro, such as p3, do not tell a volume's serial number and are not supported"
            )
        time.sleep(0.2)
    device = link.resolve()
    if not stat.S_ISBLK(device.stat().st_mode):
        raise AwsError(f"{link} leads to {device}, which is no block device")
    serial = SYSFS / device.name / "device" / "serial"
    if serial.exists() and (told := serial.read_text().strip()) != volume_id.replace("-", ""):
        raise AwsError(f"{link} leads to {device}, but that device says it is {told}: nothing is done")
    return device


def size_of(device: Path) -> int:
    """The size in bytes."""
    handle = os.open(device, os.O_RDONLY)
    try:
        return os.lseek(handle, 0, os.SEEK_END)
    finally:
        os.close(handle)


DEVICE_NAMES = tuple(f"/dev/sd{letter}" for letter in "fghijklmnop")
"""What AWS recommends for data volumes; on Nitro machines only the API sees these names."""
ATTACHED_SECONDS = 300.0


def describe_instance(clients: Clients, instance_id: str) -> Mapping[str, Any]:
    """One machine by its id; raises AwsError where there is none."""
    with translate_aws_error(f"looking at {instance_id}"):
        reservations = clients.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
    for reservation in reservations:
        for instance in reservation["Instances"]:
            found: Mapping[str, Any] = instance
            return found
    raise AwsError(f"there is no machine {instance_id} in this region")


def attach_volume(clients: Clients, name: str, project: str, instance_id: str, mode: Mode) -> Volume:
    """Attach an available volume to a running machine in its zone, and wait until it is.

    Raises AwsError where it is attached elsewhere, or the machine is stopped or in another zone.
    """
    volume = get_volume(clients, name, project)
    volume_id = volume["VolumeId"]
    where = attachment(volume)
    if where is not None and where["InstanceId"] == instance_id and where["State"] in ("attached", "attaching"):
        print(f"{volume_id} is attached to {instance_id} already")
        return _attached(clients, volume_id, instance_id) if mode is Mode.DO else volume
    if where is not None:
        raise AwsError(
            f"{volume_id} is {where['State']} ({where['InstanceId']}): detach it there first "
            f"(volume umount, then volume detach {volume_id}, on that machine)"
        )
    if volume["State"] != "available":
        raise AwsError(f"{volume_id} is {volume['State']}, not available: wait, or look in the AWS console")
    instance = describe_instance(clients, instance_id)
    _require_place(volume, instance)
    device = _free_device_name(instance)
    call = Call(clients.ec2, "attach_volume", {"VolumeId": volume_id, "InstanceId": instance_id, "Device": device})
    if not confirm_plan(mode, f"volume {volume_id}", [Step(f"attach {volume_id} to {instance_id} as {device}", call)]):
        return volume
    call.send(f"attaching {volume_id} to {instance_id}")
    attached = _attached(clients, volume_id, instance_id)
    print(f"{volume_id} is attached to {instance_id}")
    return attached


def _require_place(volume: Volume, instance: Mapping[str, Any]) -> None:
    state, zone = instance["State"]["Name"], instance["Placement"]["AvailabilityZone"]
    if state != "running":
        raise AwsError(f"{instance['InstanceId']} is {state}: volumes are attached to running machines only")
    if zone != volume["AvailabilityZone"]:
        raise AwsError(
            f"{volume['VolumeId']} is in {volume['AvailabilityZone']}, {instance['InstanceId']} in {zone}: a volume "
            f"attaches within its zone only. Make a copy: snapshot create, then snapshot restore --zone {zone}"
        )


def _free_device_name(instance: Mapping[str, Any]) -> str:
    used = {mapping["DeviceName"].replace("/dev/xvd", "/dev/sd") for mapping in instance.get("BlockDeviceMappings", ())}
    for name in DEVICE_NAMES:
        if name not in used:
            return name
    raise AwsError(f"{instance['InstanceId']} has no free device name from {DEVICE_NAMES[0]} to {DEVICE_NAMES[-1]}")


def _attached(clients: Clients, volume_id: str, instance_id: str) -> Volume:
    def ready(volume: Volume | None) -> bool:
        where = attachment(volume) if volume else None
        if volume is None or (where is not None and where["InstanceId"] != instance_id):
            raise AwsError(f"{volume_id} was taken away while it was being attached")
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
    if not confirm_plan(mode, f"volume {volume_id}", [Step(f"detach {volume_id} from {instance_id}", call)]):
        return
    if where["State"] != "detaching":
        call.send(f"detaching {volume_id}")
    wait_for_volume(clients, volume_id, "available")
    print(f"{volume_id} is detached")
