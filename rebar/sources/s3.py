"""Class folders of images below a prefix of an S3 bucket, read object by object.

Credentials, region and endpoint come from where boto3 looks for them: AWS_PROFILE, AWS_ENDPOINT_URL, an instance's
role, and so on.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from rebar.errors import RebarError
from rebar.sources.files import PackedNames, is_image
from rebar.sources.folder import IMAGENET_SUBFOLDERS, other

PREFIX = "s3://"
ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 0.05
TIMEOUT_SECONDS = 30


class S3Folder:
    """The images under ``s3://bucket/prefix/<class>/``, in the order of the keys.

    Each process opens its own connection at its first image. Raises RebarError where the prefix cannot be listed
    or holds no such images.
    """

    def __init__(self, url: str, split: str) -> None:
        self._bucket, _, prefix = url.removeprefix(PREFIX).partition("/")
        self._client: Any = None
        if not self._bucket:
            raise RebarError(f"{url}: names no bucket; expected s3://bucket/prefix")
        prefix = self._find_split(prefix.rstrip("/") + "/" if prefix.strip("/") else "", split)
        keys = sorted(key for key in self._list(prefix) if is_image(key) and "/" in key[len(prefix) :])
        if not keys:
            raise RebarError(
                f"s3://{self._bucket}/{prefix}: holds no images in class folders; expected {url}/<class>/…"
            )
        classes = [key[len(prefix) :].partition("/")[0] for key in keys]
        self.class_names: Sequence[str] = sorted(set(classes))
        numbers = {name: number for number, name in enumerate(self.class_names)}
        # Keys sort like a/b.jpg < a-b/c.jpg by their bytes; class by class is what folders give.
        order = sorted(range(len(keys)), key=lambda index: (classes[index], keys[index]))
        self._keys = PackedNames(keys[index] for index in order)
        self._labels = np.array([numbers[classes[index]] for index in order], np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """The number of the image's class."""
        return int(self._labels[index])

    def read(self, index: int) -> bytes:
        """The object's content. A connection that breaks off is tried again a few times."""
        from botocore.exceptions import BotoCoreError, ClientError

        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._get(self._keys[index])
            except ClientError as error:
                raise OSError(str(error)) from None
            except BotoCoreError as error:  # boto3 itself tries again only until the content begins
                if attempt == ATTEMPTS:
                    raise OSError(f"{error}, {ATTEMPTS} times") from None
                time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
        raise AssertionError

    def _get(self, key: str) -> bytes:
        content: bytes = self._connect().get_object(Bucket=self._bucket, Key=key)["Body"].read()
        return content

    def name(self, index: int) -> str:
        """The object's address."""
        return f"s3://{self._bucket}/{self._keys[index]}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def _connect(self) -> Any:
        if self._client is None:
            try:
                import boto3
                from botocore.config import Config
            except ImportError:
                raise RebarError("s3:// takes boto3: pip install boto3") from None
            retries = {"total_max_attempts": ATTEMPTS, "mode": "adaptive"}
            config = Config(retries=retries, connect_timeout=TIMEOUT_SECONDS, read_timeout=TIMEOUT_SECONDS)
            self._client = boto3.client("s3", config=config)
        return self._client

    def _find_split(self, prefix: str, split: str) -> str:
        for pattern in IMAGENET_SUBFOLDERS:
            below = f"{prefix}{pattern.format(split=split)}/"
            if next(iter(self._list(below, at_most=1)), None) is not None:
                return below
            there = f"{prefix}{pattern.format(split=other(split))}/"
            if next(iter(self._list(there, at_most=1)), None) is not None:
                raise RebarError(f"s3://{self._bucket}/{there} is there, but no {split}/ beside it")
        return prefix

    def _list(self, prefix: str, at_most: int | None = None) -> list[str]:
        client = self._connect()
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=prefix, PaginationConfig={"MaxItems": at_most}
        )
        try:
            return [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        except NoCredentialsError:
            raise RebarError(
                f"s3://{self._bucket}: there are no AWS credentials: run aws configure, set AWS_PROFILE, or give the "
                "machine a role that may read the bucket"
            ) from None
        except (BotoCoreError, ClientError) as error:
            raise RebarError(f"s3://{self._bucket}/{prefix}: cannot be listed: {error}") from None
