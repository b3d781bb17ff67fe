"""Places in S3 as people write them."""

import re
from dataclasses import dataclass

from rebar.cloud.errors import CloudError

URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([^\s]*))?")


@dataclass(frozen=True)
class Folder:
    """A bucket, and the beginning of keys in it without the last slash; empty: the whole bucket."""

    bucket: str
    prefix: str

    def key(self, name: str) -> str:
        """The key of an object in it."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"


def s3_folder(text: str, option: str) -> Folder:
    """The folder that an option's value names; raises CloudError for anything else."""
    found = URL.fullmatch(text)
    if found is None:
        raise CloudError(f"{option} must be an s3:// folder, not {text!r}")
    return Folder(found[1], (found[2] or "").strip("/"))
