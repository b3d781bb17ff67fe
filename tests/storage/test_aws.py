"""InstanceMetadata against a metadata service over HTTP."""

import json

from rebar.storage.aws import InstanceMetadata
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
