"""Check the size of the data, the availability, the quota and the spot price before an instance is launched."""

from dataclasses import dataclass

from rebar.aws.client import Clients, call, paginate
from rebar.aws.instances import BY_NAME, TYPES, InstanceType, find_instances
from rebar.aws.snapshots import SNAPSHOT_ID, describe_snapshot
from rebar.aws.tags import now
from rebar.storage.boto import AwsError, aws_error_code, translate_aws_error

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


def data_gb(clients: Clients, data: str) -> int | None:
    """Return the size in GB of train.beton and val.beton in ``s3://…``, or the size of a snapshot's volume.

    Returns None if AWS denies access. Raises AwsError if the data do not exist.
    """
    if SNAPSHOT_ID.fullmatch(data):
        snapshot = describe_snapshot(clients, data)
        if snapshot is None:
            raise AwsError(f"snapshot {data} does not exist in this region.", code="aws-not-found")
        return -(-snapshot["VolumeSize"] * GIB // GB)
    if not data.startswith("s3://"):
        return None
    bucket, _, prefix = data.removeprefix("s3://").rstrip("/").partition("/")
    keys = [f"{prefix}/{name}" if prefix else name for name in BETONS]
    sizes = [_object_size(clients, bucket, key) for key in keys]
    return None if None in sizes else -(-sum(size or 0 for size in sizes) // GB)


def _object_size(clients: Clients, bucket: str, key: str) -> int | None:
    from botocore.exceptions import ClientError

    s3 = clients("s3")
    with translate_aws_error(f"describing s3://{bucket}/{key}"):
        try:
            return int(s3.head_object(Bucket=bucket, Key=key)["ContentLength"])
        except ClientError as error:
            if aws_error_code(error) in ("404", "NoSuchKey"):
                text = f"s3://{bucket}/{key} does not exist. Upload it, or change --data."
                raise AwsError(text, code="aws-not-found") from None
            if aws_error_code(error) != "403":
                raise
    print(f"note: no permission to check s3://{bucket}/{key} from here")
    return None


def require_disk_space(clients: Clients, machine: InstanceType, data: str, gigabytes: int | None, root_gb: int) -> None:
    """Raise AwsError if the data do not fit on the instance's disks. ``gigabytes`` None: ask AWS for their size."""
    gigabytes = gigabytes or data_gb(clients, data) or DATA_GB
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


def require_offered(clients: Clients, machine: InstanceType, zone: str | None) -> None:
    """Raise AwsError if the type is not offered in the zone, or in any zone of the region."""
    offers = paginate(
        f"getting the zones of {machine.name}",
        clients.ec2,
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


def require_quota(clients: Clients, machine: InstanceType, *, spot: bool) -> None:
    """Raise AwsError if the account's vCPU quota is too small for the type and the instances already running."""
    code = QUOTAS.get((machine.family, spot)) or QUOTAS[machine.name[0], spot]
    get_quota = clients("service-quotas").get_service_quota
    denied = ["AccessDeniedException", "NoSuchResourceException"]
    answer = call("reading the account's quota", get_quota, none_if=denied, ServiceCode="ec2", QuotaCode=code)
    if answer is None:
        print(f"note: no permission to read the quota {code}")
        return
    quota = answer["Quota"]["Value"]
    used = sum(
        BY_NAME[kind].vcpus
        for instance in find_instances(clients, {}, ("pending", "running"))
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


def spot_price(clients: Clients, machine: InstanceType) -> SpotPrice:
    """Return the lowest current spot price in the region; raises AwsError if there is none."""
    answer = call(
        f"getting the spot price of {machine.name}",
        clients.ec2.describe_spot_price_history,
        InstanceTypes=[machine.name],
        ProductDescriptions=["Linux/UNIX"],
        StartTime=now(),
    )
    offers = [SpotPrice(float(each["SpotPrice"]), each["AvailabilityZone"]) for each in answer["SpotPriceHistory"]]
    if not offers:
        text = f"{machine.name} has no spot price in this region. Use another region, or omit --spot."
        raise AwsError(text, code="instance-type-not-offered")
    return min(offers, key=lambda offer: offer.dollars)
