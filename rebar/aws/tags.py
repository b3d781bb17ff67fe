"""How we know what is ours: tags, set in the very call that creates a thing.

Client tokens: a request sent twice, by a killed and repeated command, creates one thing.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from rebar.aws.client import AwsError

PREFIX = "rebar:"
PROJECT, RUN, ROLE, OWNER, EXPIRES = (PREFIX + key for key in ("project", "run", "role", "owner", "expires"))
MANIFEST = PREFIX + "manifest"
"""SHA-256 of the manifest of the file system's files."""
FILESYSTEM = PREFIX + "filesystem"
"""Of a volume made without a snapshot: ``blank``, then ``<type> <uuid>`` once formatting began."""
LAST_MOUNT = PREFIX + "last-mount"
"""When the volume last became writable."""
FROZEN = PREFIX + "frozen"
"""On a snapshot whose volume stayed mounted and writable, only frozen while it was taken."""
COMPLETED = PREFIX + "completed"
VERIFIED = PREFIX + "verified"
"""When all files of a restored snapshot matched its manifest."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Identity:
    """What a thing is for: project, run and role find it again; owner and expiry are for people and sweeps."""

    project: str
    run: str
    role: str
    owner: str = ""
    expires: datetime | None = None

    def __post_init__(self) -> None:
        for what, value in (("project", self.project), ("run", self.run), ("role", self.role)):
            if not NAME.fullmatch(value):
                raise AwsError(f"{what} must be letters, digits, '.', '_' and '-' (at most 64), not {value!r}")

    def tags(self, **more: str) -> dict[str, str]:
        """All tags to set at creation; ``more`` without our prefix, ``_`` for ``-``."""
        tags = {**self.key, "Name": f"{self.project} {self}"}
        if self.owner:
            tags[OWNER] = self.owner
        if self.expires:
            tags[EXPIRES] = as_text(self.expires)
        return tags | {PREFIX + key.replace("_", "-"): value for key, value in more.items()}

    @property
    def key(self) -> dict[str, str]:
        """The tags by which it is found again."""
        return {PROJECT: self.project, RUN: self.run, ROLE: self.role}

    def __str__(self) -> str:
        return f"{self.run}/{self.role}"


def filters(tags: Mapping[str, str]) -> list[dict[str, object]]:
    """Filters of EC2's describe calls for all of these tags."""
    return [{"Name": f"tag:{key}", "Values": [value]} for key, value in tags.items()]


def specification(kind: str, tags: Mapping[str, str]) -> dict[str, object]:
    """``TagSpecifications`` of one kind of resource (``volume``, ``instance`` …)."""
    return {"ResourceType": kind, "Tags": as_list(tags)}


def as_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as AWS takes them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tags_of(resource: Mapping[str, object]) -> dict[str, str]:
    """The tags of anything EC2 described."""
    listed = resource.get("Tags") or ()
    assert isinstance(listed, Iterable)
    return {tag["Key"]: tag["Value"] for tag in listed}


def require_our_tags(resource: Mapping[str, object], name: str, project: str) -> dict[str, str]:
    """The tags of a thing that carries ours; raises AwsError for any other."""
    tags = tags_of(resource)
    if tags.get(PROJECT) != project or RUN not in tags or ROLE not in tags:
        found = f"it belongs to project {tags[PROJECT]!r}" if PROJECT in tags else "it does not carry Rebar's tags"
        raise AwsError(f"{name}: {found}, not project {project!r}: it is left alone (--project names another)")
    return tags


def only_one(found: Sequence[Mapping[str, Any]], key: str, what: str) -> Mapping[str, Any] | None:
    """The one thing found, or None; raises AwsError where there are several."""
    if len(found) > 1:
        names = ", ".join(sorted(str(each[key]) for each in found))
        raise AwsError(f"{what}: {len(found)} carry these tags ({names}); name one of them by its id")
    return found[0] if found else None


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(timezone.utc)


def expiry(days: int) -> datetime:
    """The end of the day in so many days: a command repeated the same day asks for the same."""
    return now().replace(hour=23, minute=59, second=59, microsecond=0) + timedelta(days=days)


def as_text(time: datetime) -> str:
    """A time as tags hold it: ``2026-11-21T09:30:00.123456Z``, which sorts as text."""
    return time.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def as_time(text: str) -> datetime:
    """A tag's time; raises AwsError where somebody changed it to something else."""
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    except ValueError:
        raise AwsError(f"a tag holds {text!r}, which is no time in Rebar's form") from None


MOST_GENERATIONS = 20


def client_token(request: Mapping[str, Any], generation: int) -> str:
    """A token that depends on the request, on the day, and on how many earlier things of it are gone."""
    content = json.dumps(
        [request, now().strftime("%Y-%m-%d"), generation], sort_keys=True, default=str, separators=(",", ":")
    )
    return "rebar-" + hashlib.sha256(content.encode()).hexdigest()[:48]


def create_once(create: Callable[[str], str], is_gone: Callable[[str], bool], seed: Mapping[str, Any]) -> str:
    """Create a thing, or get the one that the same request created before; returns its id.

    AWS answers a known token with what that token created, even where it has been deleted since: then the next
    token is used. ``create`` takes the token; ``is_gone`` says whether an id means a deleted thing.
    """
    for generation in range(MOST_GENERATIONS):
        created = create(client_token(seed, generation))
        if not is_gone(created):
            return created
    raise AwsError(f"the same thing was created and deleted {MOST_GENERATIONS} times today; look in the AWS console")
