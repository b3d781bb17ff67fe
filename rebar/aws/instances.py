"""The machines Rebar has configurations for: what they have, and what an hour costs.

GPUs, memory, vCPUs and NVMe as EC2's DescribeInstanceTypes answers (GPU memory in marketing's GB; p3 as its page
said). Prices are stated, not measured: list prices on demand, Linux, us-east-1; of p4d and p5 from AWS's price list
published 2026-07-28, of the others as quoted in July 2026; p3's agree with SkyPilot's catalogue, which is undated, and
are not verified with AWS. Spot prices change by the hour: ``cost estimate --spot``.

Which machine this is, where it is one of EC2's. ``AWS_EC2_METADATA_DISABLED`` is respected.
"""

import os
from dataclasses import dataclass

from rebar.aws.client import AwsError
from rebar.storage.ec2_metadata import InstanceMetadata

PRICES_FROM = "July 2026, us-east-1, on demand, Linux"


@dataclass(frozen=True)
class InstanceType:
    """A machine. Sizes of memory in GiB, of disks in GB, price in US dollars an hour."""

    name: str
    gpus: int
    gpu: str
    gpu_memory_gib: int
    vcpus: int
    memory_gib: int
    nvme_disks: int
    nvme_gb: int
    """All disks together."""
    price: float
    config: str
    """The file in rn50_configs/ made for it."""

    @property
    def tells_serials(self) -> bool:
        """Whether its disks can be told apart by a volume's serial number: since Nitro."""
        return self.family != "p3"

    @property
    def family(self) -> str:
        """``g5`` of ``g5.xlarge``."""
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


def instance_type(name: str) -> InstanceType:
    """The machine of that name; raises AwsError for one that is not in the table."""
    if name not in BY_NAME:
        raise AwsError(f"{name!r} is not in Rebar's table of machines: {', '.join(BY_NAME)}")
    return BY_NAME[name]


def require_room(machine: InstanceType, data_gb: int) -> None:
    """Raises AwsError where the data do not fit the machine's own disks."""
    if not machine.nvme_gb:
        raise AwsError(f"{machine.name} has no NVMe disks of its own to copy {data_gb} GB of data to; choose another")
    if data_gb > 0.95 * machine.nvme_gb:
        fitting = [each.name for each in TYPES if each.gpus == machine.gpus and data_gb <= 0.95 * each.nvme_gb]
        raise AwsError(
            f"{data_gb} GB of data do not fit the {machine.nvme_gb} GB of NVMe of {machine.name}; "
            f"with as many GPUs: {', '.join(fitting) or 'none'}"
        )


@dataclass(frozen=True)
class Machine:
    """The machine this runs on."""

    instance_id: str
    zone: str


def this_machine() -> Machine:
    """This machine's id and zone; raises AwsError where it is no EC2 machine."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        raise AwsError("this machine cannot ask who it is (AWS_EC2_METADATA_DISABLED): give --instance")
    service = InstanceMetadata()
    try:
        instance_id, zone = service.get("instance-id"), service.get("placement/availability-zone")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise AwsError(f"this is no EC2 machine, or its metadata service is off ({reason}): give --instance") from None
    if not instance_id or not zone:
        raise AwsError(f"{service.endpoint} does not say which machine this is: give --instance")
    return Machine(instance_id, zone)
