"""Check the size of the data, the availability, the quota and the spot price before an instance is launched."""

from dataclasses import dataclass

from rebar.aws.client import Aws, call, paginate
from rebar.aws.instances import BY_NAME, TYPES, InstanceType, find_instances
from rebar.aws.tags import SNAPSHOT_ID, describe, now
from rebar.storage.boto import AwsError
from rebar.storage.s3 import S3Prefix

QUOTAS = {
    ("g", False): "L-DB2E81BA",  # Running On-Demand G and VT instances
    ("g", True): "L-3819A6DF",  # All G and VT Spot Instance Requests
    ("p", False): "L-417A185B",  # Running On-Demand P instances
    ("p", True): "L-7212CCBC",  # All P4, P3 and P2 Spot Instance Requests
    ("p5", True): "L-C4BD4855",  # All P5 Spot Instance Requests
}
"""Quota codes of Service Quotas, by (instance family, spot). The quotas are in vCPUs."""
BETONS = ("train.beton", "val.beton")
GB, GIB = 10**9, 2**30
DATA_GB = 70
"""ImageNet with the writer's defaults, with a margin."""
SYSTEM_GB = 40


def data_gb(aws: Aws, data: str) -> int | None:
    """Return the size in GB of train.beton and val.beton in ``s3://…``, or the size of a snapshot's volume.

    Returns None if AWS denies access. Raises AwsError if the data do not exist.
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
    """Raise AwsError if the data do not fit on the instance's disks. ``gigabytes`` None: ask AWS for their size."""
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
    """Raise AwsError if the data do not fit in the instance store."""
    if gigabytes > 0.95 * machine.nvme_gb:
        fitting = [each.name for each in TYPES if each.gpus == machine.gpus and gigabytes <= 0.95 * each.nvme_gb]
        text = f"{gigabytes} GB of data do not fit on the {machine.nvme_gb} GB of NVMe of {machine.name}"
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
    code = QUOTAS.get((machine.family, spot)) or QUOTAS[machine.name[0], spot]
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
