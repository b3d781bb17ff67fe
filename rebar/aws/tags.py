"""Identify and find the resources of a project by tags, and create each only once with client tokens."""

import hashlib
import json
import re
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from rebar.aws import commands
from rebar.aws.commands import Argument, Aws, argument, call, paginate
from rebar.storage.aws import AwsError
from rebar.storage.s3 import S3Prefix

PREFIX = "rebar:"
PROJECT, RUN, ROLE, OWNER, EXPIRES = (PREFIX + key for key in ("project", "run", "role", "owner", "expires"))
MANIFEST = PREFIX + "manifest"
"""SHA-256 of the manifest of all files."""
FILESYSTEM = PREFIX + "filesystem"
"""On a volume created without a snapshot: ``blank``, then ``<type> <uuid>`` once formatting has started."""
LAST_MOUNT = PREFIX + "last-mount"
"""On a volume: an id that changes when it is mounted read-write. On a snapshot: the volume's id at that time."""
FROZEN = PREFIX + "frozen"
"""On a snapshot whose volume stayed mounted read-write, and was only frozen while the snapshot started."""
VERIFIED = PREFIX + "verified"
"""On a snapshot: the time when all files of a restored copy matched its manifest."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Resource = Mapping[str, Any]
"""EC2's description of a volume, a snapshot or an instance."""
DESCRIBE = {"volume": "describe_volumes", "snapshot": "describe_snapshots", "instance": "describe_instances"}
VOLUME_ID, SNAPSHOT_ID = re.compile(r"vol-[0-9a-f]{8,17}"), re.compile(r"snap-[0-9a-f]{8,17}")
DELETED_STATES = ("deleting", "deleted", "shutting-down", "terminated")


@dataclass(frozen=True)
class Identity:
    """Project, run and role identify a resource. Owner and expiry are informative; 'cost sweep' uses the expiry."""

    project: str
    run: str
    role: str
    owner: str = ""
    expires: datetime | None = None

    def __post_init__(self) -> None:
        for what, value in (("project", self.project), ("run", self.run), ("role", self.role)):
            if not NAME.fullmatch(value):
                text = f"{what} {value!r} is invalid. Use at most 64 letters, digits, '.', '_' and '-'."
                raise AwsError(text, code="aws-name-invalid")

    @classmethod
    def of(cls, resource: Resource) -> "Identity":
        """Return the identity in a resource's tags, without the expiry."""
        tags = tags_of(resource)
        return cls(tags[PROJECT], tags[RUN], tags[ROLE], tags.get(OWNER, ""))

    def tags(self, **more: str) -> dict[str, str]:
        """Return all tags to set at creation; ``more`` without the prefix, ``_`` for ``-``."""
        tags = {**self.key, "Name": f"{self.project} {self}"}
        if self.owner:
            tags[OWNER] = self.owner
        if self.expires:
            tags[EXPIRES] = format_time(self.expires)
        return tags | {PREFIX + key.replace("_", "-"): value for key, value in more.items()}

    @property
    def key(self) -> dict[str, str]:
        """The tags that identify the resource."""
        return {PROJECT: self.project, RUN: self.run, ROLE: self.role}

    def __str__(self) -> str:
        return f"{self.run}/{self.role}"


def tag_specification(kind: str, tags: Mapping[str, str]) -> dict[str, object]:
    """Return the tag specification of one resource type (``volume``, ``instance`` …)."""
    return {"ResourceType": kind, "Tags": as_tag_list(tags)}


def as_tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags in the format of AWS's API."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tags_of(resource: Resource) -> dict[str, str]:
    """Return the tags in EC2's description of a resource."""
    return {tag["Key"]: tag["Value"] for tag in resource.get("Tags") or ()}


def set_tags(aws: Aws, resource: str, **tags: str) -> None:
    """Add or change tags of a resource; keys as in :meth:`Identity.tags`, an empty value removes the tag."""
    named = {PREFIX + key.replace("_", "-"): value for key, value in tags.items()}
    if new := as_tag_list({key: value for key, value in named.items() if value}):
        call(f"tagging {resource}", aws.ec2.create_tags, Resources=[resource], Tags=new)
    if old := [{"Key": key} for key, value in named.items() if not value]:
        call(f"tagging {resource}", aws.ec2.delete_tags, Resources=[resource], Tags=old)


def find(aws: Aws, kind: str, tags: Mapping[str, str], *filters: Mapping[str, Any], **more: Any) -> list[Resource]:
    """Return all volumes, snapshots or instances (``kind``) with these tags."""
    wanted = [*({"Name": f"tag:{key}", "Values": [value]} for key, value in tags.items()), *filters]
    key = "Reservations" if kind == "instance" else f"{kind.capitalize()}s"
    found = paginate(f"listing {kind}s", aws.ec2, DESCRIBE[kind], key, Filters=wanted, **more)
    return [each for reservation in found for each in reservation["Instances"]] if kind == "instance" else found


def describe(aws: Aws, kind: str, identifier: str) -> Resource | None:
    """Return a volume, snapshot or instance (``kind``) by its id; None if it does not exist."""
    name = kind.capitalize()
    missing = [f"Invalid{name}.NotFound", f"Invalid{name}ID.NotFound"]
    method = getattr(aws.ec2, DESCRIBE[kind])
    answer = call(f"describing {identifier}", method, none_if=missing, **{f"{name}Ids": [identifier]}) or {}
    found = (answer.get("Reservations") or [{}])[0] if kind == "instance" else answer
    return next(iter(found.get(f"{name}s", ())), None)


def get(aws: Aws, kind: str, name: str, find_by_tags: Callable[[Mapping[str, str]], Resource | None]) -> Resource:
    """Return the project's volume or snapshot (``kind``) called ``vol-…``, ``snap-…`` or ``RUN/ROLE``.

    Raises AwsError if it does not exist or belongs to another project.
    """
    if (VOLUME_ID if kind == "volume" else SNAPSHOT_ID).fullmatch(name):
        resource = describe(aws, kind, name)
    elif name.count("/") == 1:
        run, role = name.split("/")
        resource = find_by_tags(Identity(aws.project, run, role).key)
    else:
        text = f"{name!r} is not a {kind}. Use its id, or RUN/ROLE as in imagenet/beton."
        raise AwsError(text, code="aws-name-invalid")
    if resource is None:
        text = f"{kind} {name} does not exist in this region. List all with 'python -m rebar.aws cost sweep'."
        raise AwsError(text, code="aws-not-found")
    require_project_tags(resource, name, aws.project)
    return resource


def require_project_tags(resource: Resource, name: str, project: str) -> None:
    """Raise AwsError if a resource does not belong to the project."""
    tags = tags_of(resource)
    if PROJECT in tags and tags[PROJECT] != project:
        text = f"{name} belongs to project {tags[PROJECT]!r}, not {project!r}. Set --project."
        raise AwsError(text, code="aws-not-ours")
    if not {PROJECT, RUN, ROLE} <= tags.keys():
        raise AwsError(f"{name} does not have Rebar's tags. Use a resource of this project.", code="aws-not-ours")


def at_most_one(found: Sequence[Resource], key: str, what: str) -> Resource | None:
    """Return the only resource found, or None. Raises AwsError if there are several."""
    if len(found) > 1:
        names = ", ".join(sorted(str(each[key]) for each in found))
        raise AwsError(f"{what}: {len(found)} resources have these tags ({names}). Use the id.", code="aws-ambiguous")
    return found[0] if found else None


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(timezone.utc)


def expiry(days: int) -> datetime:
    """Return the end of the day ``days`` from now, so that a repeated command sends the same request all day."""
    return now().replace(hour=23, minute=59, second=59, microsecond=0) + timedelta(days=days)


def format_time(time: datetime) -> str:
    """Format a time for a tag: ``2026-11-21T09:30:00.123456Z``."""
    return time.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def expiry_of(tags: Mapping[str, str]) -> datetime | None:
    """Return when a resource expires, or None. Raises AwsError if the tag is not a time."""
    if EXPIRES not in tags:
        return None
    try:
        return datetime.strptime(tags[EXPIRES], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    except ValueError:
        text = (
            f"tag {EXPIRES} is {tags[EXPIRES]!r}, not a time such as {format_time(now())}. Correct or remove the tag."
        )
        raise AwsError(text, code="aws-name-invalid") from None


MAX_GENERATIONS = 20
VISIBILITY_SECONDS = {"volume": 15, "instance": 300}
"""EC2 may not describe a new resource for this long (eventual consistency)."""


def create_once(aws: Aws, kind: str, create: Callable[[str], tuple[str, datetime]], request: Mapping[str, Any]) -> str:
    """Create a resource, or get the one that the same request created earlier today. Returns its id.

    AWS answers a known client token with the resource that it created, even if that was deleted since. In that case
    the next token is used. ``create(token)`` returns the id and the time of creation. Waits until EC2 describes the
    resource.
    """
    for generation in range(MAX_GENERATIONS):
        content = json.dumps([request, f"{now():%Y-%m-%d}", generation], sort_keys=True, default=str)
        created, at = create("rebar-" + hashlib.sha256(content.encode()).hexdigest()[:48])
        visible_at = at + timedelta(seconds=VISIBILITY_SECONDS[kind])
        while (found := describe(aws, kind, created)) is None and now() < visible_at:
            time.sleep(commands.POLL_SECONDS)
        state = None if found is None else found["State"]
        if (state["Name"] if isinstance(state, dict) else state) not in (None, *DELETED_STATES):
            return created
    text = f"the same resource was created and deleted {MAX_GENERATIONS} times today. Check the AWS console."
    raise AwsError(text, code="aws-wait-failed")


RESULTS = argument(
    "--results", required=True, help="s3://… folder; the checkpoint of an earlier attempt is read from there"
)


def identity_arguments(role: str) -> list[Argument]:
    """Return the options that :func:`identity_of` reads; ``role`` is the default of ``--role``."""
    return [
        argument("--run", dest="run_name", required=True, metavar="NAME", help="name of the run"),
        argument("--role", default=role, help="purpose of this resource in the run (default: %(default)s)"),
        argument("--owner", default="", help="person or team, for the tag; tags are not secret"),
    ]


def identity_of(options: Namespace) -> Identity:
    """Return the identity set by the options of :func:`identity_arguments` and by ``--expires-days``."""
    expires = expiry(options.expires_days) if options.expires_days else None
    return Identity(options.project, options.run_name, options.role, options.owner, expires)


def run_prefix(options: Namespace) -> S3Prefix:
    """Return the run's own folder below ``--results``. Raises AwsError ``s3-invalid-url``."""
    return S3Prefix.parse(options.results, "--results").below(f"{options.project}/{options.run_name}")
