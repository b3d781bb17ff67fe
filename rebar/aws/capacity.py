"""Asked before anything is rented: how large the data are, whether a machine can be had, and at what price."""

from dataclasses import dataclass

from rebar.aws.client import AwsError, Clients, code_of, translate_aws_error
from rebar.aws.instances import BY_NAME, InstanceType, require_room
from rebar.aws.snapshots import SNAPSHOT_ID, describe_snapshot
from rebar.aws.sweep import find_instances
from rebar.aws.tags import now

QUOTAS = {
    ("g", False): "L-DB2E81BA",  # Running On-Demand G and VT instances
    ("g", True): "L-3819A6DF",  # All G and VT Spot Instance Requests
    ("p", False): "L-417A185B",  # Running On-Demand P instances
    ("p", True): "L-7212CCBC",  # All P4, P3 and P2 Spot Instance Requests
    ("p5", True): "L-C4BD4855",  # All P5 Spot Instance Requests
}
"""Service Quotas' codes, in vCPUs, by family and whether on spot."""


@dataclass(frozen=True)
class SpotPrice:
    """The lowest spot price of a region's zones, in US dollars an hour."""

    dollars: float
    zone: str


BETONS = ("train.beton", "val.beton")
GB, GIB = 10**9, 2**30
DATA_GB = 70
"""ImageNet as the writer's defaults store it, with some room."""
SYSTEM_GB = 40


def data_gb(clients: Clients, data: str) -> int | None:
    """How many GB ``s3://…`` holds in train.beton and val.beton, or a snapshot at most; None where it is not told.

    Raises AwsError where there are no such data: a machine would look for them in vain.
    """
    if SNAPSHOT_ID.fullmatch(data):
        snapshot = describe_snapshot(clients, data)
        if snapshot is None:
            raise AwsError(f"there is no snapshot {data} in this region")
        return -(-snapshot["VolumeSize"] * GIB // GB)
    if not data.startswith("s3://"):
        return None
    bucket, _, prefix = data.removeprefix("s3://").rstrip("/").partition("/")
    keys = [f"{prefix}/{name}" if prefix else name for name in BETONS]
    sizes = [_object_size(clients, bucket, key) for key in keys]
    return None if None in sizes else -(-sum(size or 0 for size in sizes) // GB)


def require_fit(clients: Clients, machine: InstanceType, data: str, gigabytes: int | None, root_gb: int) -> None:
    """Raises AwsError where the data do not fit the machine's disks, or cannot be found on it.

    ``gigabytes``: how large they are, where the user says so; else it is asked. ``root_gb``: of the system disk.
    """
    gigabytes = gigabytes or data_gb(clients, data) or DATA_GB
    if machine.nvme_gb:
        require_room(machine, gigabytes)
    elif root_gb < gigabytes + SYSTEM_GB:
        raise AwsError(f"{machine.name} has no disks of its own: give --root-gb {gigabytes + 60}, for system and data")
    if not machine.tells_serials and data.startswith("snap-"):
        raise AwsError(f"{machine.name} is older than Nitro and does not tell which disk is a volume: --data s3://…")


def _object_size(clients: Clients, bucket: str, key: str) -> int | None:
    from botocore.exceptions import ClientError

    with translate_aws_error(f"looking at s3://{bucket}/{key}"):
        try:
            size: int = clients("s3").head_object(Bucket=bucket, Key=key)["ContentLength"]
            return size
        except ClientError as error:
            if code_of(error) in ("404", "NoSuchKey"):
                raise AwsError(f"there is no s3://{bucket}/{key}: upload it first, or give another --data") from None
            if code_of(error) == "403":
                print(f"note: s3://{bucket}/{key} may not be looked at from here; the machine will see")
                return None
            raise


def zones_offering(clients: Clients, machine: InstanceType) -> list[str]:
    """The zones of the region that have this type at all."""
    with translate_aws_error(f"asking where {machine.name} is offered"):
        pages = clients.ec2.get_paginator("describe_instance_type_offerings").paginate(
            LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": [machine.name]}]
        )
        return sorted(offer["Location"] for page in pages for offer in page["InstanceTypeOfferings"])


def require_offered(clients: Clients, machine: InstanceType, zone: str | None) -> None:
    """Raises AwsError where the type is not offered in the zone, or nowhere in the region."""
    zones = zones_offering(clients, machine)
    if not zones:
        raise AwsError(f"{machine.name} is not offered in this region")
    if zone is not None and zone not in zones:
        raise AwsError(f"{machine.name} is not offered in {zone}, but in {', '.join(zones)}")


def require_quota(clients: Clients, machine: InstanceType, *, spot: bool) -> None:
    """Raises AwsError where the account's vCPU quota is below what the type needs, besides our own machines."""
    from botocore.exceptions import ClientError

    code = QUOTAS.get((machine.family, spot)) or QUOTAS[machine.name[0], spot]
    with translate_aws_error("asking for the account's quota"):
        try:
            answer = clients("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=code)
        except ClientError as error:
            if code_of(error) in ("AccessDeniedException", "NoSuchResourceException"):
                print(f"note: the quota {code} could not be read ({code_of(error)}); AWS will say if it is too small")
                return
            raise
    quota = answer["Quota"]["Value"]
    used = sum(
        BY_NAME[kind].vcpus
        for instance in find_instances(clients, {}, ("pending", "running"))
        if (kind := instance["InstanceType"]) in BY_NAME
        and kind[0] == machine.name[0]
        and (instance.get("InstanceLifecycle") == "spot") == spot
    )
    if used + machine.vcpus > quota:
        raise AwsError(
            f"{machine.name} needs {machine.vcpus} vCPUs, but the account's quota {code} is {quota:.0f}"
            f"{f', of which {used} are in use' if used else ''}: ask for more (docs/aws.md), which takes hours to days"
        )


def spot_price(clients: Clients, machine: InstanceType) -> SpotPrice:
    """The lowest spot price in the region now; raises AwsError where there is none."""
    with translate_aws_error(f"asking for the spot price of {machine.name}"):
        answer = clients.ec2.describe_spot_price_history(
            InstanceTypes=[machine.name], ProductDescriptions=["Linux/UNIX"], StartTime=now()
        )
    offers = [SpotPrice(float(each["SpotPrice"]), each["AvailabilityZone"]) for each in answer["SpotPriceHistory"]]
    if not offers:
        raise AwsError(f"AWS names no spot price for {machine.name} in this region")
    return min(offers, key=lambda offer: offer.dollars)
