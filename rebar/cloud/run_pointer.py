"""``run.json``: which checkpoints of a run a bucket holds whole, and how far they are.

It lies in the run's place, ``s3://bucket/prefix/RUN``, and is replaced after all that it names is there. Training's
own uploads write and read the same file.
"""

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rebar.cloud.clients import Clients
from rebar.cloud.errors import CloudError, code_of, told_clearly
from rebar.cloud.s3_urls import Folder

POINTER = "run.json"
FORMAT, VERSION = "rebar-run", 1


@dataclass(frozen=True)
class Progress:
    """How far a run is: complete epochs, steps, and epochs with the one under way by its share."""

    epoch: int
    step: int
    position: float


@dataclass(frozen=True)
class Stored:
    """A checkpoint's object, by its name within the run's place."""

    object: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Pointer:
    """What the file says; checkpoints by their names in the run's folder, such as ``last.pt``."""

    progress: Progress
    checkpoints: Mapping[str, Stored]
    host: str = ""

    def to_json(self) -> bytes:
        """The file, saying that it is written now, here."""
        about = {"format": FORMAT, "version": VERSION, "time": round(time.time(), 3), "host": socket.gethostname()}
        checkpoints = {name: asdict(stored) for name, stored in self.checkpoints.items()}
        return json.dumps({**about, **asdict(self.progress), "checkpoints": checkpoints}, indent=2).encode() + b"\n"


def read_pointer(clients: Clients, place: Folder) -> tuple[Pointer | None, str]:
    """What a run's place holds, and the version of the file; (None, "") for nothing. Raises CloudError."""
    from botocore.exceptions import ClientError

    with told_clearly(f"reading {place}/{POINTER}"):
        try:
            answer = clients("s3").get_object(Bucket=place.bucket, Key=place.key(POINTER))
        except ClientError as error:
            if code_of(error) in ("NoSuchKey", "404"):
                return None, ""
            raise
        text = answer["Body"].read()
    try:
        return _from_record(json.loads(text)), str(answer["ETag"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CloudError(f"{place}/{POINTER} is damaged, or of another version of Rebar: take another run id") from None


def write_pointer(clients: Clients, place: Folder, pointer: Pointer, *, replaces: str) -> bool:
    """Replace the file of a version ("": there was none); False where it is another meanwhile."""
    from botocore.exceptions import ClientError

    condition = {"IfMatch": replaces} if replaces else {"IfNoneMatch": "*"}
    where = {"Bucket": place.bucket, "Key": place.key(POINTER)}
    with told_clearly(f"writing {place}/{POINTER}"):
        try:
            clients("s3").put_object(**where, Body=pointer.to_json(), ChecksumAlgorithm="SHA256", **condition)
        except ClientError as error:
            if code_of(error) in ("PreconditionFailed", "ConditionalRequestConflict"):
                return False
            raise
    return True


def _from_record(record: Mapping[str, Any]) -> Pointer:
    if (record["format"], record["version"]) != (FORMAT, VERSION):
        raise ValueError("version")
    checkpoints = {name: Stored(**stored) for name, stored in record["checkpoints"].items()}
    if any("/" in name for name in checkpoints) or "last.pt" not in checkpoints:
        raise ValueError("names")
    return Pointer(Progress(record["epoch"], record["step"], record["position"]), checkpoints, record["host"])
