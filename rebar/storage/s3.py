"""Upload files to S3 with checksums, and download objects in parallel, resumable and verified."""

import hashlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from rebar.cli import warn
from rebar.storage.aws import AwsError, aws_error_code, translate_aws_error
from rebar.storage.block_copies import copy_blocks
from rebar.storage.files import check_output, hash_of, sha256_of, write_at, write_error

MIB = 2**20
UPLOAD_PART_BYTES, UPLOAD_THREADS = 16 * MIB, 8
DOWNLOAD_PART_BYTES, DOWNLOAD_THREADS = 32 * MIB, 32
ATTEMPTS = 6
RETRY_SECONDS = 0.25
"""Base of the exponential backoff between attempts to read the content of an object."""
Result = TypeVar("Result")
_URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([^@\s]*))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r'"([0-9a-f]{32})(?:-(\d+))?"')


class S3ChecksumError(AwsError):
    """A downloaded object does not match its checksum; ``key`` is the key of the object."""

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message, code="s3-checksum-mismatch")
        self.key = key


@dataclass(frozen=True)
class S3Prefix:
    """A bucket and a key prefix without its last slash; an empty prefix is the entire bucket."""

    bucket: str
    prefix: str = ""

    @classmethod
    def parse(cls, url: str, option: str) -> "S3Prefix":
        """Return the prefix of an ``s3://`` URL given in ``option``. Raises AwsError if it is not one."""
        found = _URL.fullmatch(url)
        if found is None:  # the URL is not repeated: it may contain credentials
            raise AwsError(
                f"{option} is not an S3 URL. Use s3://BUCKET or s3://BUCKET/PREFIX; boto3 finds the credentials "
                "(AWS_PROFILE, the role of the machine).",
                code="s3-invalid-url",
            )
        return cls(found[1], "/".join(part for part in (found[2] or "").split("/") if part))

    def key(self, name: str) -> str:
        """Return the key of the object ``name`` below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def below(self, name: str) -> "S3Prefix":
        """Return the prefix ``name`` below this one."""
        return S3Prefix(self.bucket, self.key(name))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"


def upload(
    client: Any, content: IO[bytes], bucket: str, key: str, *, sha256: str = "", threads: int = UPLOAD_THREADS
) -> None:
    """Upload an open file; boto3 closes it. The object is complete when this function returns.

    S3 verifies a checksum of every part. ``sha256`` is stored as metadata, for :func:`download`. ``threads``: 0
    uploads in the caller's thread and in one request. Raises AwsError.
    """
    from boto3.s3.transfer import TransferConfig

    config = TransferConfig(
        multipart_threshold=UPLOAD_PART_BYTES if threads else 2**30,
        multipart_chunksize=UPLOAD_PART_BYTES,
        max_concurrency=threads or 1,
        use_threads=bool(threads),
        preferred_transfer_client="classic",  # the CRT client ignores AWS_ENDPOINT_URL
    )
    extra = {"ChecksumAlgorithm": "SHA256", **({"Metadata": {"sha256": sha256}} if sha256 else {})}
    with translate_aws_error(f"uploading s3://{bucket}/{key}"):
        client.upload_fileobj(content, bucket, key, ExtraArgs=extra, Config=config)


def download(
    client: Any,
    bucket: str,
    key: str,
    target: Path,
    *,
    sha256: str | None = None,
    unverified: bool = False,
    overwrite: bool = False,
    threads: int = DOWNLOAD_THREADS,
    part_bytes: int = DOWNLOAD_PART_BYTES,
) -> bool:
    """Download an object with parallel ranged requests; return False if ``target`` already has its contents.

    Parts that an interrupted call completed are kept, unless the object has changed. The file is renamed to ``target``
    after its checksum is verified: ``sha256``, else the object's ``sha256`` metadata, else its ETag. Raises AwsError
    (``s3-no-checksum`` unless ``unverified``, ``s3-checksum-mismatch``, ``s3-object-changed``) and RebarError
    (``disk-full``, ``file-locked``, ``write-target-exists`` for another file unless ``overwrite``).
    """
    url = f"s3://{bucket}/{key}"
    with translate_aws_error(f"reading {url}"):
        head = client.head_object(Bucket=bucket, Key=key)
        expected = _expected_checksum(client, bucket, key, head, sha256)
    if expected is None and not unverified:
        raise AwsError(
            f"{url}: S3 has no checksum that can be verified. Pass --sha256, upload it with the metadata sha256=..., "
            "or accept it with --unverified.",
            code="s3-no-checksum",
        )
    size = head["ContentLength"]
    if expected and target.is_file() and target.stat().st_size == size and expected.matches(target):
        return False
    if target.exists():
        check_output(target, overwrite=overwrite)
    part = _PartReader(client, bucket, key, head["ETag"], size, part_bytes)

    def verify(path: Path, _: object) -> None:
        if expected and not expected.matches(path):
            raise S3ChecksumError(f"{url}: its {expected.algorithm} does not match. Run the command again.", key)

    version, sizes = [head["ETag"], part_bytes], [min(part_bytes, size - at) for at in range(0, size, part_bytes)]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_blocks(target, version, sizes, part.copy, verify, threads=threads, description=target.name)
    except OSError as error:
        raise write_error(target, error) from None
    return True


def retry_interrupted(read: Callable[[], Result], stop: threading.Event | None = None) -> Result:
    """Return the result of reading an object, after at most ATTEMPTS attempts.

    botocore retries a request only until the first byte of its response. Raises botocore's exceptions.
    """
    from botocore.exceptions import BotoCoreError

    for attempt in range(1, ATTEMPTS):
        try:
            return read()
        except BotoCoreError:
            if stop is not None and stop.is_set():
                raise
            time.sleep(RETRY_SECONDS * 2**attempt)
    return read()


@dataclass(frozen=True)
class _PartReader:
    """Reads parts of one version of an object with ranged requests."""

    client: Any
    bucket: str
    key: str
    etag: str
    size: int
    part_bytes: int

    def copy(self, file: IO[bytes], part: int, stop: threading.Event) -> None:
        """Write one part to its position in a file."""
        from botocore.exceptions import ClientError

        start, end = part * self.part_bytes, min((part + 1) * self.part_bytes, self.size)

        def read() -> None:
            position = start
            byte_range = f"bytes={start}-{end - 1}"
            answer = self.client.get_object(Bucket=self.bucket, Key=self.key, Range=byte_range, IfMatch=self.etag)
            for chunk in answer["Body"].iter_chunks(MIB):
                write_at(file, chunk, position)
                position += len(chunk)
                if stop.is_set():
                    break

        with translate_aws_error(f"reading s3://{self.bucket}/{self.key}"):
            try:
                retry_interrupted(read, stop)
            except ClientError as error:
                if aws_error_code(error) not in ("PreconditionFailed", "412"):
                    raise
                raise AwsError(
                    f"s3://{self.bucket}/{self.key} was replaced during the download. Run the command again.",
                    code="s3-object-changed",
                ) from None


@dataclass(frozen=True)
class _Checksum:
    """A checksum of a file: its SHA-256, its MD5, or the MD5 of the MD5s of its parts (the ETag of multiparts)."""

    algorithm: str
    digest: str
    part_bytes: int = 0

    def matches(self, path: Path) -> bool:
        """Return whether the file has this checksum."""
        if self.algorithm == "SHA-256" or not self.part_bytes:
            name = "sha256" if self.algorithm == "SHA-256" else "md5"
            return _digest(path, name).hex() == self.digest
        size = path.stat().st_size
        with ThreadPoolExecutor(8) as pool:
            digests = pool.map(
                lambda start: _digest(path, "md5", start, min(self.part_bytes, size - start)),
                range(0, size, self.part_bytes),
            )
            return hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest() == self.digest


def _expected_checksum(
    client: Any, bucket: str, key: str, head: Mapping[str, Any], sha256: str | None
) -> _Checksum | None:
    """Return the given SHA-256, the one in the metadata, or the ETag; None if there is none.

    An ETag consists of MD5s unless the object is encrypted with a key of KMS or of the customer.
    """
    given = (sha256 or head.get("Metadata", {}).get("sha256") or "").lower()
    if given:
        if not _SHA256.fullmatch(given):
            raise AwsError(f"{given!r} is not a SHA-256. Pass its 64 hexadecimal digits.", code="s3-invalid-checksum")
        return _Checksum("SHA-256", given)
    tag = _ETAG.fullmatch(head["ETag"])
    if tag is None or "aws:kms" in head.get("ServerSideEncryption", "") or head.get("SSECustomerAlgorithm"):
        return None
    if tag[2] is None:
        return _Checksum("MD5", tag[1])
    part_bytes = client.head_object(Bucket=bucket, Key=key, PartNumber=1)["ContentLength"] or 1
    if -(-head["ContentLength"] // part_bytes) != int(tag[2]):
        return None  # parts of different sizes, or a server that does not report them
    return _Checksum("MD5 of parts", tag[1], part_bytes)


def _digest(path: Path, algorithm: str, start: int = 0, size: int | None = None) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        digest: bytes = hash_of(file, algorithm, size=size).digest()
        return digest


def keep_existing(target: Path, sha256: str) -> None:
    """Rename an existing file to ``NAME.1`` (or 2, 3, ...), with a warning, unless its content has the SHA-256.

    Raises RebarError if it cannot be renamed.
    """
    if not target.is_file():
        return
    with target.open("rb") as file:
        if sha256_of(file) == sha256:
            return
    kept = next(path for n in itertools.count(1) if not (path := target.with_name(f"{target.name}.{n}")).exists())
    try:
        target.rename(kept)
    except OSError as error:
        raise write_error(kept, error) from None
    warn(f"{target} belongs to another run and was renamed to {kept.name}")
