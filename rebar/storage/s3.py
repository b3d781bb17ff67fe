"""A folder of an S3 bucket: contents up, contents down and compared, and what went wrong in one message.

Credentials, region and endpoint come from where boto3 looks for them: AWS_PROFILE, AWS_ENDPOINT_URL, an instance's
role, and so on. No message repeats a credential.
"""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rebar.errors import RebarError
from rebar.storage.atomic_write import atomic_write

CONNECT_SECONDS, READ_SECONDS = 10, 60
CHUNK = 1 << 20
TRIES = 4
PAUSE_SECONDS = 0.5
_ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[^@\s]*))?")
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_RIGHTS = "the credentials must allow s3:ListBucket, and s3:GetObject, s3:PutObject and s3:DeleteObject there"
_ADVICE = {
    "NoSuchBucket": "make the bucket, or correct its name",
    "AccessDenied": _RIGHTS,
    "403": _RIGHTS,
    "ExpiredToken": "the session has expired: log in again (aws sso login)",
    "InvalidAccessKeyId": "check the credentials: aws sts get-caller-identity",
    "SignatureDoesNotMatch": "check the credentials: aws sts get-caller-identity",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it (timedatectl)",
    "PermanentRedirect": "the bucket is in another region: set AWS_DEFAULT_REGION",
}


class BucketError(RebarError):
    """S3 does not do, or does not have, what was asked for."""


class AbsentError(BucketError):
    """There is no such object."""


class DamagedError(BucketError):
    """An object is not what it should be; ``name`` is its name below the folder."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


class BucketFolder:
    """What is below ``s3://bucket/prefix/name/``. Raises BucketError for another address, and without boto3."""

    def __init__(self, address: str, name: str) -> None:
        match = _ADDRESS.fullmatch(address)
        if match is None:  # not repeated: it may hold somebody's keys
            raise BucketError(
                "logging.upload must be s3://bucket or s3://bucket/prefix; boto3 finds credentials by itself "
                "(AWS_PROFILE, a role of the machine)"
            )
        self._bucket = match["bucket"]
        self._prefix = "/".join(part for part in (*(match["prefix"] or "").split("/"), name) if part)
        self._client = _client()

    @property
    def url(self) -> str:
        """As people write it."""
        return f"s3://{self._bucket}/{self._prefix}"

    def put(self, name: str, content: IO[bytes], *, sha256: str = "") -> None:
        """Store a content whole; it is there when this returns, and until then what was there before."""
        from boto3.s3.transfer import TransferConfig

        # The caller's thread does it. The other client, CRT, does not know AWS_ENDPOINT_URL.
        config = TransferConfig(multipart_threshold=1 << 30, use_threads=False, preferred_transfer_client="classic")
        metadata = {"Metadata": {"sha256": sha256}} if sha256 else {}
        with self._told(name, "stored"):
            self._client.upload_fileobj(content, self._bucket, self._key(name), ExtraArgs=metadata, Config=config)

    def get(self, name: str) -> bytes:
        """A small content. Raises AbsentError where there is none."""
        with self._told(name, "read"):
            content: bytes = self._client.get_object(Bucket=self._bucket, Key=self._key(name))["Body"].read()
            return content

    def download(self, name: str, target: Path, *, sha256: str) -> None:
        """Bring a content to a file, which appears whole, as it should be, or not at all.

        A connection that breaks off is tried again. Raises AbsentError, and DamagedError for another checksum.
        """
        for attempt in range(1, TRIES + 1):
            try:
                self._download_once(name, target, sha256)
                return
            except (AbsentError, DamagedError):
                raise
            except BucketError:
                if attempt == TRIES:
                    raise
                time.sleep(PAUSE_SECONDS * 2**attempt)

    def _download_once(self, name: str, target: Path, sha256: str) -> None:
        digest = hashlib.sha256()
        with self._told(name, "read"), atomic_write(target) as (file,):
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(name))["Body"]
            for chunk in body.iter_chunks(CHUNK):
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != sha256:
                damaged = f"{self.url}/{name} is damaged: its SHA-256 is not the one it was uploaded with"
                raise DamagedError(damaged, name)

    def delete(self, name: str) -> None:
        """Remove a content; it may be gone already."""
        with self._told(name, "deleted"):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(name))

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    @contextmanager
    def _told(self, name: str, done: str) -> Iterator[None]:
        """Turn what boto3 raises into a BucketError."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        where = f"{self.url}/{name} cannot be {done}"
        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _ABSENT:
                raise AbsentError(f"{self.url}/{name} does not exist") from None
            raise BucketError(f"{where}: S3 answers {code}; {_ADVICE.get(code, 'see its documentation')}") from None
        except (NoCredentialsError, PartialCredentialsError):
            raise BucketError(
                f"{where}: there are no AWS credentials: run aws configure, set AWS_PROFILE, or give the machine a "
                "role that may use the bucket"
            ) from None
        except (BotoCoreError, Boto3Error) as error:
            raise BucketError(f"{where}: {_without_password(error)}") from None


def _client() -> Any:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise BucketError("logging.upload takes boto3: pip install boto3 (or: pip install 'ffcv-rebar[aws]')") from None
    retries = {"mode": "standard"}  # how often is left to AWS_MAX_ATTEMPTS
    config = Config(connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries=retries)
    try:
        return boto3.session.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise BucketError(f"logging.upload: {_without_password(error)}") from None


def _without_password(error: Exception) -> str:
    """The message, where an endpoint was written as https://user:password@host without these."""
    return re.sub(r"(?<=://)[^/\s@]*@", "", str(error))
