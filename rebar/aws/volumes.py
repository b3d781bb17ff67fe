"""EBS volumes: found by id or by tags; only ours.

A volume is created once, blank or from a snapshot, however often the command runs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rebar.aws.client import AwsError, Clients, code_of, translate_aws_error, wait_until
from rebar.aws.cost import EBS_GB_MONTH
from rebar.aws.plan import Call, Mode, Step, confirm_plan
from rebar.aws.tags import (
    PROJECT,
    ROLE,
    RUN,
    Identity,
    as_list,
    create_once,
    filters,
    only_one,
    require_our_tags,
    specification,
)

Volume = Mapping[str, Any]
VOLUME_ID = re.compile(r"vol-[0-9a-f]{8,17}")
PAGE = 100
CHANGE_SECONDS = 300.0


def find_volumes(clients: Clients, tags: Mapping[str, str]) -> list[Volume]:
    """All volumes that carry these tags, on however many pages."""
    with translate_aws_error("looking for volumes"):
        pages = clients.ec2.get_paginator("describe_volumes").paginate(
            Filters=filters(tags), PaginationConfig={"PageSize": PAGE}
        )
        found = [volume for page in pages for volume in page["Volumes"]]
    return [volume for volume in found if volume["State"] not in ("deleting", "deleted")]


def describe_volume(clients: Clients, volume_id: str) -> Volume | None:
    """One volume by its id; None where there is none (any more)."""
    from botocore.exceptions import ClientError

    with translate_aws_error(f"looking at {volume_id}"):
        try:
            found: list[Volume] = clients.ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
        except ClientError as error:
            if code_of(error) == "InvalidVolume.NotFound":
                return None
            raise
    return found[0] if found else None


def wait_for_volume(clients: Clients, volume_id: str, state: str) -> None:
    """Wait until a volume has a state, or is no more; raises AwsError where that takes five minutes."""
    wait_until(
        f"{volume_id} to be {state}",
        lambda: describe_volume(clients, volume_id),
        lambda seen: seen is None or seen["State"] == state,
        seconds=CHANGE_SECONDS,
    )


def get_volume(clients: Clients, name: str, project: str) -> Volume:
    """The volume called ``vol-…`` or ``RUN/ROLE``, if it is ours; raises AwsError."""
    if VOLUME_ID.fullmatch(name):
        volume = describe_volume(clients, name)
    elif name.count("/") == 1:
        run, role = name.split("/")
        volume = only_one(find_volumes(clients, {PROJECT: project, RUN: run, ROLE: role}), "VolumeId", name)
    else:
        raise AwsError(f"{name!r} names no volume: give vol-… or RUN/ROLE, such as imagenet/beton")
    if volume is None:
        raise AwsError(f"there is no volume {name} in this region; 'python -m rebar.aws cost sweep' lists them all")
    require_our_tags(volume, volume["VolumeId"], project)
    return volume


def attachment(volume: Volume) -> Mapping[str, Any] | None:
    """Where a volume is, or is being, attached."""
    return next((each for each in volume.get("Attachments", ()) if each.get("State") != "detached"), None)


def require_attached(volume: Volume) -> None:
    """Raises AwsError for a volume that no machine has: its device need not be waited for."""
    if attachment(volume) is None:
        raise AwsError(f"{volume['VolumeId']} is not attached to any machine: volume attach {volume['VolumeId']} first")


def set_tags(clients: Clients, resource: str, tags: Mapping[str, str]) -> None:
    """Add tags to a thing of ours, or change them."""
    with translate_aws_error(f"tagging {resource}"):
        clients.ec2.create_tags(Resources=[resource], Tags=as_list(tags))


def remove_tag(clients: Clients, resource: str, key: str) -> None:
    """Take a tag away from a thing of ours."""
    with translate_aws_error(f"tagging {resource}"):
        clients.ec2.delete_tags(Resources=[resource], Tags=[{"Key": key}])


AVAILABLE_SECONDS = 300.0
APPEAR_SECONDS = 15.0
"""How long a new id may be unknown to the part of EC2 that describes."""


@dataclass(frozen=True)
class NewVolume:
    """What to create; sizes in GiB, throughput in MiB/s."""

    identity: Identity
    zone: str
    size: int
    kind: str = "gp3"
    throughput: int | None = None
    iops: int | None = None
    snapshot: str | None = None
    encrypted: bool | None = None
    """None: as the account's default says."""
    manifest: str | None = None

    def request(self) -> dict[str, Any]:
        """The parameters of CreateVolume, without a client token."""
        more = {} if self.snapshot else {"filesystem": "blank"}
        if self.manifest:
            more["manifest"] = self.manifest
        optional = {
            "Throughput": self.throughput,
            "Iops": self.iops,
            "SnapshotId": self.snapshot,
            "Encrypted": self.encrypted,
        }
        return {
            "AvailabilityZone": self.zone,
            "Size": self.size,
            "VolumeType": self.kind,
            "TagSpecifications": [specification("volume", self.identity.tags(**more))],
            **{key: value for key, value in optional.items() if value is not None},
        }


def create_volume(clients: Clients, new: NewVolume, mode: Mode) -> Volume | None:
    """Create a volume, or find the one that an earlier call created; None where only the plan was shown."""
    found = only_one(find_volumes(clients, new.identity.key), "VolumeId", str(new.identity))
    if found is not None:
        _require_same(found, new)
        print(f"{found['VolumeId']} exists already: {found['Size']} GiB {found['VolumeType']} in {new.zone}")
        return _available(clients, found["VolumeId"]) if mode is Mode.DO else found
    request = new.request()
    origin = f"from {new.snapshot}" if new.snapshot else "blank"
    price = EBS_GB_MONTH.get(new.kind)
    cost = f", about ${price * new.size:.2f} a month" if price else ""
    text = f"create a {new.size} GiB {new.kind} volume in {new.zone}, {origin}{cost}"
    call = Call(clients.ec2, "create_volume", request)
    if not confirm_plan(mode, f"volume {new.identity}", [Step(text, call)]):
        return None
    volume_id = create_once(
        lambda token: _send_create(clients, request, token), lambda volume_id: _is_gone(clients, volume_id), request
    )
    print(f"created {volume_id}", flush=True)
    return _available(clients, volume_id)


def _send_create(clients: Clients, request: Mapping[str, Any], token: str) -> str:
    answer = Call(clients.ec2, "create_volume", {**request, "ClientToken": token}).send("creating a volume")
    return str(answer["VolumeId"])


def _is_gone(clients: Clients, volume_id: str) -> bool:
    try:
        volume = wait_until(
            f"{volume_id} to appear",
            lambda: describe_volume(clients, volume_id),
            lambda seen: seen is not None,
            seconds=APPEAR_SECONDS,
        )
    except AwsError:
        if describe_volume(clients, volume_id) is None:
            return True
        raise
    return volume is None or volume["State"] in ("deleting", "deleted")


def _require_same(volume: Volume, new: NewVolume) -> None:
    expected = {
        "AvailabilityZone": new.zone,
        "Size": new.size,
        "VolumeType": new.kind,
        "SnapshotId": new.snapshot or "",
    }
    different = [
        f"{key} is {volume.get(key) or 'none'}, not {value or 'none'}"
        for key, value in expected.items()
        if (volume.get(key) or "") != value
    ]
    if different:
        raise AwsError(
            f"{new.identity} exists as {volume['VolumeId']}, but {', '.join(different)}: "
            "give the same values, or another --run or --role"
        )


def _available(clients: Clients, volume_id: str) -> Volume:
    """Wait until a new volume can be used."""

    def ready(volume: Volume | None) -> bool:
        if volume is None:
            raise AwsError(f"{volume_id} has vanished while it was being created")
        if volume["State"] == "error":
            raise AwsError(f"AWS could not create {volume_id} (state error): delete it in the console, then try again")
        return volume["State"] in ("available", "in-use")

    volume = wait_until(
        f"{volume_id} to be available", lambda: describe_volume(clients, volume_id), ready, seconds=AVAILABLE_SECONDS
    )
    assert volume is not None
    return volume
