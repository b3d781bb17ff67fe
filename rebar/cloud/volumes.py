"""EBS volumes: found by id or by tags; only ours."""

import re
from collections.abc import Mapping
from typing import Any

from rebar.cloud.clients import Clients
from rebar.cloud.errors import CloudError, code_of, told_clearly
from rebar.cloud.tags import PROJECT, ROLE, RUN, as_list, filters, only_one, require_ours
from rebar.cloud.waiting import wait_until

Volume = Mapping[str, Any]
VOLUME_ID = re.compile(r"vol-[0-9a-f]{8,17}")
PAGE = 100
CHANGE_SECONDS = 300.0


def find_volumes(clients: Clients, tags: Mapping[str, str]) -> list[Volume]:
    """All volumes that carry these tags, on however many pages."""
    with told_clearly("looking for volumes"):
        pages = clients.ec2.get_paginator("describe_volumes").paginate(
            Filters=filters(tags), PaginationConfig={"PageSize": PAGE}
        )
        found = [volume for page in pages for volume in page["Volumes"]]
    return [volume for volume in found if volume["State"] not in ("deleting", "deleted")]


def describe_volume(clients: Clients, volume_id: str) -> Volume | None:
    """One volume by its id; None where there is none (any more)."""
    from botocore.exceptions import ClientError

    with told_clearly(f"looking at {volume_id}"):
        try:
            found: list[Volume] = clients.ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
        except ClientError as error:
            if code_of(error) == "InvalidVolume.NotFound":
                return None
            raise
    return found[0] if found else None


def wait_for_volume(clients: Clients, volume_id: str, state: str) -> None:
    """Wait until a volume has a state, or is no more; raises CloudError where that takes five minutes."""
    wait_until(
        f"{volume_id} to be {state}",
        lambda: describe_volume(clients, volume_id),
        lambda seen: seen is None or seen["State"] == state,
        seconds=CHANGE_SECONDS,
    )


def get_volume(clients: Clients, name: str, project: str) -> Volume:
    """The volume called ``vol-…`` or ``RUN/ROLE``, if it is ours; raises CloudError."""
    if VOLUME_ID.fullmatch(name):
        volume = describe_volume(clients, name)
    elif name.count("/") == 1:
        run, role = name.split("/")
        volume = only_one(find_volumes(clients, {PROJECT: project, RUN: run, ROLE: role}), "VolumeId", name)
    else:
        raise CloudError(f"{name!r} names no volume: give vol-… or RUN/ROLE, such as imagenet/beton")
    if volume is None:
        raise CloudError(f"there is no volume {name} in this region; 'python -m rebar.cloud cost sweep' lists them all")
    require_ours(volume, volume["VolumeId"], project)
    return volume


def attachment(volume: Volume) -> Mapping[str, Any] | None:
    """Where a volume is, or is being, attached."""
    return next((each for each in volume.get("Attachments", ()) if each.get("State") != "detached"), None)


def require_attached(volume: Volume) -> None:
    """Raises CloudError for a volume that no machine has: its device need not be waited for."""
    if attachment(volume) is None:
        raise CloudError(
            f"{volume['VolumeId']} is not attached to any machine: volume attach {volume['VolumeId']} first"
        )


def set_tags(clients: Clients, resource: str, tags: Mapping[str, str]) -> None:
    """Add tags to a thing of ours, or change them."""
    with told_clearly(f"tagging {resource}"):
        clients.ec2.create_tags(Resources=[resource], Tags=as_list(tags))


def remove_tag(clients: Clients, resource: str, key: str) -> None:
    """Take a tag away from a thing of ours."""
    with told_clearly(f"tagging {resource}"):
        clients.ec2.delete_tags(Resources=[resource], Tags=[{"Key": key}])
