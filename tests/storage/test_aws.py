"""boto3 clients, and InstanceMetadata against a metadata service over HTTP."""

import json

import pytest

from rebar.storage.aws import AwsError, InstanceMetadata, make_client
from tests.training.metadata_service import NOTICE, MetadataServer

NAME = "spot/instance-action"


def test_get_returns_a_value_once_it_exists(ec2_metadata: MetadataServer) -> None:
    ec2_metadata.notice_after = 2
    service = InstanceMetadata()
    assert [service.get(NAME) for _ in range(2)] == [None, None]
    notice = service.get(NAME)
    assert notice is not None
    assert json.loads(notice) == NOTICE
    assert ec2_metadata.tokens == 1


def test_get_renews_an_expired_token(ec2_metadata: MetadataServer) -> None:
    service = InstanceMetadata()
    assert service.get(NAME)
    ec2_metadata.tokens = 7  # the old token is invalid now
    assert service.get(NAME)
    assert ec2_metadata.tokens == 8


@pytest.mark.parametrize(("value", "attempts"), [("9", 9), ("", 6)])
def test_number_of_attempts_comes_from_the_environment(
    value: str, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", value)
    assert make_client("s3", "us-east-1").meta.config.retries["total_max_attempts"] == attempts


@pytest.mark.parametrize("value", ["many", "0", "-1", "2.5"])
def test_invalid_number_of_attempts_is_reported(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", value)
    with pytest.raises(AwsError) as error:
        make_client("s3", "us-east-1")
    assert error.value.code == "aws-option-invalid"
