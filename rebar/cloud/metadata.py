"""Which machine this is, where it is one of EC2's. ``AWS_EC2_METADATA_DISABLED`` is respected."""

import os
from dataclasses import dataclass

from rebar.cloud.errors import CloudError
from rebar.instance_metadata import InstanceMetadata


@dataclass(frozen=True)
class Machine:
    """The machine this runs on."""

    instance_id: str
    zone: str


def this_machine() -> Machine:
    """This machine's id and zone; raises CloudError where it is no EC2 machine."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        raise CloudError("this machine cannot ask who it is (AWS_EC2_METADATA_DISABLED): give --instance")
    service = InstanceMetadata()
    try:
        instance_id, zone = service.get("instance-id"), service.get("placement/availability-zone")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise CloudError(
            f"this is no EC2 machine, or its metadata service is off ({reason}): give --instance"
        ) from None
    if not instance_id or not zone:
        raise CloudError(f"{service.endpoint} does not say which machine this is: give --instance")
    return Machine(instance_id, zone)
