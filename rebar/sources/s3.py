"""Class folders of images below a prefix of an S3 bucket, read object by object.

boto3 reads credentials, region and endpoint from its usual places: AWS_PROFILE, AWS_ENDPOINT_URL, an instance role.
"""

import time
from collections.abc import Sequence
from typing import Any

from rebar.errors import RebarError
from rebar.sources.byte_ranges import PackedNames, index_classes
from rebar.sources.layout import SPLIT_FOLDERS, is_image, other_split
from rebar.storage.boto import make_client

PREFIX = "s3://"
MAX_ATTEMPTS = 6
BACKOFF_SECONDS = 0.05
"""Base of the exponential backoff between attempts."""


class S3Folder:
    """The images at ``s3://bucket/prefix/<class>/``, ordered by class, then key.

    Each process connects when it reads its first image. Raises RebarError if the prefix cannot be listed or contains no
    images in class folders.
    """

    def __init__(self, url: str, split: str) -> None:
        self._bucket, _, prefix = url.removeprefix(PREFIX).partition("/")
        self._client: Any = None
        if not self._bucket:
            raise RebarError(f"{url} has no bucket name. Give s3://bucket/prefix.", code="s3-address-invalid")
        prefix = self._find_split(prefix.rstrip("/") + "/" if prefix.strip("/") else "", split)
        keys = sorted(key for key in self._list(prefix) if is_image(key[len(prefix) :]) and "/" in key[len(prefix) :])
        if not keys:
            raise RebarError(
                f"s3://{self._bucket}/{prefix}: contains no images in class folders. Arrange them as {url}/<class>/….",
                code="source-empty",
            )
        classes = [key[len(prefix) :].partition("/")[0] for key in keys]
        self.class_names: Sequence[str] = sorted(set(classes))
        # Keys sort as a-b/c.jpg < a/b.jpg; class folders sort as a < a-b.
        order = sorted(range(len(keys)), key=lambda index: (classes[index], keys[index]))
        self._keys = PackedNames(keys[index] for index in order)
        self._labels = index_classes([classes[index] for index in order], self.class_names)

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """Return the label of an image."""
        return int(self._labels[index])

    def read(self, index: int) -> bytes:
        """Return the content of an object. Interrupted downloads are tried up to ``MAX_ATTEMPTS`` times."""
        from botocore.exceptions import BotoCoreError, ClientError

        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                content: bytes = self._connect().get_object(Bucket=self._bucket, Key=self._keys[index])["Body"].read()
                return content
            except ClientError as error:
                raise OSError(str(error)) from None
            except BotoCoreError as error:  # boto3 retries requests, but not the reading of their bodies
                if attempt == MAX_ATTEMPTS:
                    raise OSError(f"{error} (after {MAX_ATTEMPTS} attempts)") from None
                time.sleep(BACKOFF_SECONDS * 2**attempt)
        raise AssertionError

    def name(self, index: int) -> str:
        """Return the URL of an object."""
        return f"s3://{self._bucket}/{self._keys[index]}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def _connect(self) -> Any:
        if self._client is None:
            self._client = make_client("s3")
        return self._client

    def _find_split(self, prefix: str, split: str) -> str:
        """Return the prefix of a split's images: below ``prefix``, or ``prefix`` itself. Raises RebarError."""
        for pattern in SPLIT_FOLDERS:
            below = f"{prefix}{pattern.format(split=split)}/"
            if self._list(below, max_keys=1):
                return below
            other = f"{prefix}{pattern.format(split=other_split(split))}/"
            if self._list(other, max_keys=1):
                raise RebarError(
                    f"s3://{self._bucket}/{prefix}: contains {other.removeprefix(prefix)}, but no {split}/. Complete "
                    f"the dataset, or give the prefix of the {split} images.",
                    code="source-split-not-found",
                )
        return prefix

    def _list(self, prefix: str, max_keys: int | None = None) -> list[str]:
        client = self._connect()
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=prefix, PaginationConfig={"MaxItems": max_keys}
        )
        try:
            return [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        except NoCredentialsError:
            raise RebarError(
                f"s3://{self._bucket}: no AWS credentials found. Run aws configure, set AWS_PROFILE, or attach a role "
                "that may read the bucket.",
                code="s3-source-unreadable",
            ) from None
        except (BotoCoreError, ClientError) as error:
            raise RebarError(
                f"s3://{self._bucket}/{prefix} cannot be listed: {error}. Check the bucket and its permissions.",
                code="s3-source-unreadable",
            ) from None
