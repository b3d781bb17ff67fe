"""Places in S3 as people write them.

What S3 knows of an object's contents, and whether a file has them.

A file to S3, in parallel parts that S3 compares with their checksums.
"""

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebar.aws.client import AwsError, Clients, translate_aws_error

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
    """The folder that an option's value names; raises AwsError for anything else."""
    found = URL.fullmatch(text)
    if found is None:
        raise AwsError(f"{option} must be an s3:// folder, not {text!r}")
    return Folder(found[1], (found[2] or "").strip("/"))


CHUNK = 4 * 2**20
SHA256 = re.compile(r"[0-9a-f]{64}")
ETAG = re.compile(r'"([0-9a-f]{32})(?:-(\d+))?"')


@dataclass(frozen=True)
class Expected:
    """A checksum: SHA-256 of the whole, or MD5 by the parts in which an object was uploaded."""

    kind: str
    digest: str
    part_bytes: int = 0
    """0: of the whole."""
    parts: int = 0

    def matches(self, file: Path) -> bool:
        """Whether a file has this checksum."""
        size = file.stat().st_size
        if self.kind == "SHA-256":
            return sha256_of(file) == self.digest
        if not self.part_bytes:
            return _digest(file, "md5", 0, size).hex() == self.digest
        starts = range(0, size, self.part_bytes)
        if len(starts) != self.parts:
            return False
        with ThreadPoolExecutor(8) as threads:
            digests = threads.map(lambda start: _digest(file, "md5", start, min(self.part_bytes, size - start)), starts)
            return hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest() == self.digest


def expected_checksum(s3: Any, bucket: str, key: str, head: Mapping[str, Any], sha256: str | None) -> Expected | None:
    """The best checksum there is: given, in the object's metadata, or its ETag; None where none says anything.

    An ETag is made of MD5s unless the object is encrypted with a key of KMS or of the customer's.
    """
    given = sha256 or head.get("Metadata", {}).get("sha256")
    if given is not None:
        if not SHA256.fullmatch(given.lower()):
            raise AwsError(f"{given!r} is no SHA-256: 64 hexadecimal digits")
        return Expected("SHA-256", given.lower())
    tag = ETAG.fullmatch(head["ETag"])
    if tag is None or "aws:kms" in head.get("ServerSideEncryption", "") or head.get("SSECustomerAlgorithm"):
        return None
    if tag[2] is None:
        return Expected("MD5", tag[1])
    with translate_aws_error(f"looking at s3://{bucket}/{key}"):
        first = s3.head_object(Bucket=bucket, Key=key, PartNumber=1)
    if first["ContentLength"] == head["ContentLength"] and tag[2] != "1":
        return None  # the parts are not told
    return Expected("MD5 by parts", tag[1], first["ContentLength"], int(tag[2]))


def sha256_of(file: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    return _digest(file, "sha256", 0, file.stat().st_size).hex()


def _digest(file: Path, name: str, start: int, size: int) -> bytes:
    content = hashlib.new(name, usedforsecurity=False)
    with file.open("rb", buffering=0) as opened:
        opened.seek(start)
        while size > 0 and (chunk := opened.read(min(CHUNK, size))):
            content.update(chunk)
            size -= len(chunk)
    return content.digest()


PART_BYTES = 16 * 2**20
PARTS_AT_ONCE = 8


def send_file(clients: Clients, path: Path, bucket: str, key: str, *, sha256: str = "") -> None:
    """Upload a file, which is there whole when this returns; a checksum goes along, for ``data stage`` to compare.

    Raises AwsError.
    """
    from boto3.exceptions import S3UploadFailedError
    from boto3.s3.transfer import TransferConfig

    how = TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=PARTS_AT_ONCE,
        preferred_transfer_client="classic",  # the other one does not know the endpoint of the environment
    )
    more = {"ChecksumAlgorithm": "SHA256", **({"Metadata": {"sha256": sha256}} if sha256 else {})}
    with translate_aws_error(f"uploading {path.name} to s3://{bucket}/{key}"):
        try:
            clients("s3").upload_file(str(path), bucket, key, ExtraArgs=more, Config=how)
        except S3UploadFailedError as error:
            raise error.__context__ or error from None
