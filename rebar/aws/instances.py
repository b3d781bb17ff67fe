"""The supported instance types and their prices, instances in EC2, and checks before an instance is launched.

GPUs, memory, vCPUs and NVMe are those of EC2's DescribeInstanceTypes (GPU memory from the data sheets, p3 from its
product page). Prices are in US dollars, for us-east-1. They are constants, not queried from AWS: those of instances are
as AWS's price list had them on 2026-07-20, in Karpenter's generated table (aws/karpenter-provider-aws,
pkg/providers/pricing/zz_generated.pricing_aws.go). It has no p5e, which us-east-1 does not offer.
"""

import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass

from rebar.aws.commands import Aws, argument, call, paginate
from rebar.aws.tags import SNAPSHOT_ID, Resource, describe, find, now
from rebar.storage.aws import AwsError, InstanceMetadata
from rebar.storage.s3 import S3Prefix

PRICE_SOURCE = "2026-07-20, us-east-1, on demand, Linux"
HOURS_PER_MONTH = 730
EBS_GB_MONTH = {"gp3": 0.08, "gp2": 0.10, "st1": 0.045, "sc1": 0.015}
"""$ per GB and month, without provisioned IOPS and throughput; gp3 includes 3,000 IOPS and 125 MiB/s.

gp3 and gp2: AWS's agent toolkit (aws/agent-toolkit-for-aws, ebs-optimization.md: "approximate as of early 2026").
st1 and sc1: from several public cost tools that agree, none of them AWS's; looked up 2026-11-21.
"""
SNAPSHOT_GB_MONTH = 0.05
"""Standard tier, per stored GB; from several public cost tools that agree, looked up 2026-11-21."""


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
    InstanceType("g5.4xlarge", 1, "A10G", 24, 16, 64, 1, 600, 1.624, "g5_1gpu.yaml"),
    InstanceType("g5.8xlarge", 1, "A10G", 24, 32, 128, 1, 900, 2.448, "g5_1gpu.yaml"),
    InstanceType("g5.16xlarge", 1, "A10G", 24, 64, 256, 1, 1900, 4.096, "g5_1gpu.yaml"),
    InstanceType("g5.12xlarge", 4, "A10G", 24, 48, 192, 1, 3800, 5.672, "g5_4gpu.yaml"),
    InstanceType("g5.24xlarge", 4, "A10G", 24, 96, 384, 1, 3800, 8.144, "g5_4gpu.yaml"),
    InstanceType("g5.48xlarge", 8, "A10G", 24, 192, 768, 2, 7600, 16.288, "g5_8gpu.yaml"),
    InstanceType("g6.xlarge", 1, "L4", 24, 4, 16, 1, 250, 0.8048, "g6_1gpu.yaml"),
    InstanceType("g6.2xlarge", 1, "L4", 24, 8, 32, 1, 450, 0.9776, "g6_1gpu.yaml"),
    InstanceType("g6.4xlarge", 1, "L4", 24, 16, 64, 1, 600, 1.3232, "g6_1gpu.yaml"),
    InstanceType("g6.8xlarge", 1, "L4", 24, 32, 128, 2, 900, 2.0144, "g6_1gpu.yaml"),
    InstanceType("g6.16xlarge", 1, "L4", 24, 64, 256, 2, 1880, 3.3968, "g6_1gpu.yaml"),
    InstanceType("g6.12xlarge", 4, "L4", 24, 48, 192, 4, 3760, 4.6016, "g6_4gpu.yaml"),
    InstanceType("g6.24xlarge", 4, "L4", 24, 96, 384, 4, 3760, 6.6752, "g6_4gpu.yaml"),
    InstanceType("g6.48xlarge", 8, "L4", 24, 192, 768, 8, 7520, 13.3504, "g5_8gpu.yaml"),
    InstanceType("g6e.xlarge", 1, "L40S", 48, 4, 32, 1, 250, 1.861, "g6_1gpu.yaml"),
    InstanceType("g6e.2xlarge", 1, "L40S", 48, 8, 64, 1, 450, 2.24208, "g6_1gpu.yaml"),
    InstanceType("g6e.4xlarge", 1, "L40S", 48, 16, 128, 1, 600, 3.00424, "g6_1gpu.yaml"),
    InstanceType("g6e.8xlarge", 1, "L40S", 48, 32, 256, 2, 900, 4.52856, "g6_1gpu.yaml"),
    InstanceType("g6e.16xlarge", 1, "L40S", 48, 64, 512, 2, 1900, 7.57719, "g6_1gpu.yaml"),
    InstanceType("g6e.12xlarge", 4, "L40S", 48, 48, 384, 2, 3800, 10.49264, "g6_4gpu.yaml"),
    InstanceType("g6e.24xlarge", 4, "L40S", 48, 96, 768, 2, 3800, 15.06559, "g6_4gpu.yaml"),
    InstanceType("g6e.48xlarge", 8, "L40S", 48, 192, 1536, 4, 7600, 30.13118, "g5_8gpu.yaml"),
    InstanceType("p3.2xlarge", 1, "V100", 16, 8, 61, 0, 0, 3.06, "p3_1gpu.yaml"),
    InstanceType("p3.8xlarge", 4, "V100", 16, 32, 244, 0, 0, 12.24, "p3_4gpu.yaml"),
    InstanceType("p3.16xlarge", 8, "V100", 16, 64, 488, 0, 0, 24.48, "p3_8gpu.yaml"),
    InstanceType("p4d.24xlarge", 8, "A100", 40, 96, 1152, 8, 8000, 21.957642, "p4d_8gpu.yaml"),
    InstanceType("p4de.24xlarge", 8, "A100", 80, 96, 1152, 8, 8000, 27.44705, "p4d_8gpu.yaml"),
    InstanceType("p5.48xlarge", 8, "H100", 80, 192, 2048, 8, 30400, 55.04, "p5_8gpu.yaml"),
    InstanceType("p5en.48xlarge", 8, "H200", 141, 192, 2048, 8, 30400, 63.296, "p5_8gpu.yaml"),
)
BY_NAME = {each.name: each for each in TYPES}


@dataclass(frozen=True)
class CpuInstanceType:
    """An instance type without a GPU, for preparing data; memory in GiB, price in $/h, on demand."""

    name: str
    vcpus: int
    memory_gib: int
    price: float


CPU_TYPES = (
    CpuInstanceType("t3.medium", 2, 4, 0.0416),
    CpuInstanceType("t3.large", 2, 8, 0.0832),
    CpuInstanceType("t3.xlarge", 4, 16, 0.1664),
    CpuInstanceType("t3.2xlarge", 8, 32, 0.3328),
)
PRICES = {each.name: each.price for each in (*TYPES, *CPU_TYPES)}
"""$/h, on demand, by instance type."""


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


# ------------------------------------------------------------------------------------------ checks before a launch

QUOTAS = {
    ("g", False): "L-DB2E81BA",  # Running On-Demand G and VT instances
    ("g", True): "L-3819A6DF",  # All G and VT Spot Instance Requests
    ("p", False): "L-417A185B",  # Running On-Demand P instances
    ("p", True): "L-7212CCBC",  # All P4, P3 and P2 Spot Instance Requests
    ("p5", True): "L-C4BD4855",  # All P5 Spot Instance Requests; AWS lists no other quota for p5en
}
"""Quota codes of Service Quotas, by (start of the instance family, spot). The quotas are in vCPUs."""
BETONS = ("train.beton", "val.beton")
GB, GIB = 10**9, 2**30
DATA_GB = 70
"""ImageNet with the writer's defaults, with a margin."""
SYSTEM_GB = 40


def data_gb(aws: Aws, data: str) -> int | None:
    """Return the size in GB of train.beton and val.beton in ``s3://…``, or the size of a snapshot's volume.

    Returns None if AWS denies access. Raises AwsError if the data does not exist.
    """
    if SNAPSHOT_ID.fullmatch(data):
        snapshot = describe(aws, "snapshot", data)
        if snapshot is None:
            raise AwsError(f"snapshot {data} does not exist in this region.", code="aws-not-found")
        return -(-snapshot["VolumeSize"] * GIB // GB)
    source = S3Prefix.parse(data, "--data")
    s3, sizes = aws("s3"), []
    for key in map(source.key, BETONS):
        url = f"s3://{source.bucket}/{key}"
        answer = call(f"looking for {url} (--data)", s3.head_object, none_if=["403"], Bucket=source.bucket, Key=key)
        if answer is None:
            print(f"note: no permission to check {url} from here")
            return None
        sizes.append(int(answer["ContentLength"]))
    return -(-sum(sizes) // GB)


def require_disk_space(aws: Aws, machine: InstanceType, data: str, gigabytes: int | None, root_gb: int) -> None:
    """Raise AwsError if the data does not fit on the instance's disks. ``gigabytes`` None: query AWS for their size."""
    gigabytes = gigabytes or data_gb(aws, data) or DATA_GB
    if machine.nvme_gb:
        require_nvme(machine, gigabytes)
    elif root_gb < gigabytes + SYSTEM_GB:
        text = f"{machine.name} has no instance store. Use --root-gb {gigabytes + 60} for system and data."
        raise AwsError(text, code="instance-type-unsuitable")
    if not machine.has_volume_serials and data.startswith("snap-"):
        text = f"{machine.name} does not expose the serial numbers of volumes. Use --data s3://… instead of a snapshot."
        raise AwsError(text, code="instance-type-unsuitable")


def require_nvme(machine: InstanceType, gigabytes: int) -> None:
    """Raise AwsError if the data does not fit in the instance store."""
    if gigabytes > 0.95 * machine.nvme_gb:
        fitting = [each.name for each in TYPES if each.gpus == machine.gpus and gigabytes <= 0.95 * each.nvme_gb]
        text = f"{gigabytes} GB of data does not fit on the {machine.nvme_gb} GB of NVMe of {machine.name}"
        advice = f"Use {' or '.join(fitting) or 'more GPUs'}."
        raise AwsError(f"{text}. {advice}", code="instance-type-unsuitable")


def require_offered(aws: Aws, machine: InstanceType, zone: str | None) -> None:
    """Raise AwsError if the type is not offered in the zone, or in any zone of the region."""
    offers = paginate(
        f"getting the zones of {machine.name}",
        aws.ec2,
        "describe_instance_type_offerings",
        "InstanceTypeOfferings",
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": [machine.name]}],
    )
    zones = sorted(offer["Location"] for offer in offers)
    if not zones or (zone is not None and zone not in zones):
        text = f"{machine.name} is not offered in {zone or 'this region'}"
        advice = f"Use {' or '.join(zones)}." if zones else "Use another region."
        raise AwsError(f"{text}. {advice}", code="instance-type-not-offered")


def require_quota(aws: Aws, machine: InstanceType, *, spot: bool) -> None:
    """Raise AwsError if the account's vCPU quota is too small for the type and the instances already running."""
    code = QUOTAS.get((machine.family[:2], spot)) or QUOTAS[machine.family[0], spot]
    get_quota = aws("service-quotas").get_service_quota
    denied = ["AccessDeniedException", "NoSuchResourceException"]
    answer = call("reading the account's quota", get_quota, none_if=denied, ServiceCode="ec2", QuotaCode=code)
    if answer is None:
        print(f"note: no permission to read the quota {code}")
        return
    quota = answer["Quota"]["Value"]
    used = sum(
        BY_NAME[kind].vcpus
        for instance in find_instances(aws, {}, ("pending", "running"))
        if (kind := instance["InstanceType"]) in BY_NAME
        and kind[0] == machine.name[0]
        and (instance.get("InstanceLifecycle") == "spot") == spot
    )
    if used + machine.vcpus > quota:
        text = f"{machine.name} needs {machine.vcpus} vCPUs, but quota {code} is {quota:.0f}, of which {used} are used"
        raise AwsError(f"{text}. Request more in Service Quotas (docs/aws.md).", code="aws-quota-exceeded")


@dataclass(frozen=True)
class SpotPrice:
    """The lowest spot price in the zones of a region, in $/h."""

    dollars: float
    zone: str


def spot_price(aws: Aws, machine: InstanceType) -> SpotPrice:
    """Return the lowest current spot price in the region; raises AwsError if there is none."""
    answer = call(
        f"getting the spot price of {machine.name}",
        aws.ec2.describe_spot_price_history,
        InstanceTypes=[machine.name],
        ProductDescriptions=["Linux/UNIX"],
        StartTime=now(),
    )
    offers = [SpotPrice(float(each["SpotPrice"]), each["AvailabilityZone"]) for each in answer["SpotPriceHistory"]]
    if not offers:
        text = f"{machine.name} has no spot price in this region. Use another region, or omit --spot."
        raise AwsError(text, code="instance-type-not-offered")
    return min(offers, key=lambda offer: offer.dollars)
