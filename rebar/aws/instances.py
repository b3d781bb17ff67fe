"""The instance types that Rebar has configurations for, existing instances, and the id of this instance.

GPUs, memory, vCPUs and NVMe are those of EC2's DescribeInstanceTypes (GPU memory from the data sheets, p3 from its
product page). docs/aws.md lists the sources of the prices.
"""

import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass

from rebar.aws.arguments import argument
from rebar.aws.client import Aws
from rebar.aws.tags import Resource, describe, find
from rebar.storage.boto import AwsError
from rebar.storage.ec2_metadata import InstanceMetadata

PRICE_SOURCE = "July 2026, us-east-1, on demand, Linux"


@dataclass(frozen=True)
class InstanceType:
    """An instance type; memory in GiB, disks in GB (all disks together), price in $/h, on demand."""

    name: str
    gpus: int
    gpu: str
    gpu_memory_gib: int
    vcpus: int
    memory_gib: int
    nvme_disks: int
    nvme_gb: int
    price: float
    config: str
    """Its config file in rn50_configs/."""

    @property
    def has_volume_serials(self) -> bool:
        """Whether the device of a volume exposes its serial number (Nitro instances)."""
        return self.family != "p3"

    @property
    def family(self) -> str:
        """Instance family: ``g5`` for ``g5.xlarge``."""
        return self.name.partition(".")[0]


TYPES = (
    InstanceType("g4dn.xlarge", 1, "T4", 16, 4, 16, 1, 125, 0.526, "g4dn_1gpu.yaml"),
    InstanceType("g4dn.12xlarge", 4, "T4", 16, 48, 192, 1, 900, 3.912, "g4dn_4gpu.yaml"),
    InstanceType("g4dn.metal", 8, "T4", 16, 96, 384, 2, 1800, 7.824, "g4dn_8gpu.yaml"),
    InstanceType("g5.xlarge", 1, "A10G", 24, 4, 16, 1, 250, 1.006, "g5_1gpu.yaml"),
    InstanceType("g5.2xlarge", 1, "A10G", 24, 8, 32, 1, 450, 1.212, "g5_1gpu.yaml"),
    InstanceType("g5.8xlarge", 1, "A10G", 24, 32, 128, 1, 900, 2.448, "g5_1gpu.yaml"),
    InstanceType("g5.12xlarge", 4, "A10G", 24, 48, 192, 1, 3800, 5.672, "g5_4gpu.yaml"),
    InstanceType("g5.48xlarge", 8, "A10G", 24, 192, 768, 2, 7600, 16.288, "g5_8gpu.yaml"),
    InstanceType("g6.xlarge", 1, "L4", 24, 4, 16, 1, 250, 0.8048, "g6_1gpu.yaml"),
    InstanceType("g6.12xlarge", 4, "L4", 24, 48, 192, 4, 3760, 4.6016, "g6_4gpu.yaml"),
    InstanceType("p3.2xlarge", 1, "V100", 16, 8, 61, 0, 0, 3.06, "p3_1gpu.yaml"),
    InstanceType("p3.8xlarge", 4, "V100", 16, 32, 244, 0, 0, 12.24, "p3_4gpu.yaml"),
    InstanceType("p3.16xlarge", 8, "V100", 16, 64, 488, 0, 0, 24.48, "p3_8gpu.yaml"),
    InstanceType("p4d.24xlarge", 8, "A100", 40, 96, 1152, 8, 8000, 21.957642, "p4d_8gpu.yaml"),
    InstanceType("p5.48xlarge", 8, "H100", 80, 192, 2048, 8, 30400, 55.04, "p5_8gpu.yaml"),
)
BY_NAME = {each.name: each for each in TYPES}


def instance_type(name: str | None) -> InstanceType:
    """Return an instance type by its name. Raises AwsError if it is not in the table."""
    if name is None:
        raise AwsError("--instance-type is missing.", code="aws-option-invalid")
    if name not in BY_NAME:
        text = f"instance type {name!r} is not supported. Use one of {', '.join(BY_NAME)}."
        raise AwsError(text, code="instance-type-unknown")
    return BY_NAME[name]


INSTANCE_TYPE = argument("--instance-type", required=True, metavar="TYPE", help=", ".join(BY_NAME))


def config_file(options: Namespace) -> str:
    """Return ``--config``, or the config file of the instance type."""
    return options.config or f"rn50_configs/{instance_type(options.instance_type).config}"


ACTIVE_STATES = ("pending", "running", "stopping", "stopped")


def find_instances(aws: Aws, tags: Mapping[str, str], states: tuple[str, ...] = ACTIVE_STATES) -> list[Resource]:
    """Return all instances with these tags in one of the states."""
    return find(aws, "instance", tags, {"Name": "instance-state-name", "Values": list(states)})


def get_instance(aws: Aws, instance_id: str) -> Resource:
    """Return an instance by its id. Raises AwsError if it does not exist."""
    instance = describe(aws, "instance", instance_id)
    if instance is None:
        raise AwsError(f"instance {instance_id} does not exist in this region.", code="aws-not-found")
    return instance


@dataclass(frozen=True)
class Machine:
    """The EC2 instance on which this process runs."""

    instance_id: str
    zone: str


def this_machine() -> Machine:
    """Return the id and zone of this machine. Raises AwsError if it is not an EC2 instance."""
    advice = "Set --instance."
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        raise AwsError(f"instance metadata is disabled (AWS_EC2_METADATA_DISABLED). {advice}", code="aws-no-instance")
    service = InstanceMetadata()
    try:
        instance_id, zone = service.get("instance-id"), service.get("placement/availability-zone")
    except (OSError, ValueError) as error:
        text = (
            f"this machine is not an EC2 instance, or its metadata service is off ({getattr(error, 'reason', error)})"
        )
        raise AwsError(f"{text}. {advice}", code="aws-no-instance") from None
    if not instance_id or not zone:
        raise AwsError(f"{service.endpoint} does not return an instance id. {advice}", code="aws-no-instance")
    return Machine(instance_id, zone)
