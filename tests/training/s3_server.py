"""S3 on loopback with one bucket, and the environment variables of its clients."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

BUCKET = "results"
KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@dataclass(frozen=True)
class S3:
    """A server with the empty bucket ``s3://results``."""

    variables: dict[str, str]
    client: Any

    def names(self, prefix: str = "") -> list[str]:
        """Return the keys below a prefix, without it."""
        listed = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())
        return sorted(entry["Key"][len(prefix) :] for entry in listed)

    def read(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content

    def manifest(self, run: str) -> dict[str, Any]:
        """Return the parsed ``run.json`` of a run."""
        record: dict[str, Any] = json.loads(self.read(f"{run}/run.json"))
        return record


@contextmanager
def s3_server() -> Iterator[S3]:
    """Empty the session's moto server, and create the bucket."""
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto.server")
    from tests.aws.strict_aws import strict_aws

    server = strict_aws()
    server.reset()
    variables = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }
    client = boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
    )
    client.create_bucket(Bucket=BUCKET)
    yield S3(variables, client)
