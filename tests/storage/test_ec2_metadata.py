"""Questions to the instance metadata service, over HTTP as on a machine of EC2."""

import json

from rebar.storage.ec2_metadata import InstanceMetadata
from tests.training.metadata_service import NOTICE, MetadataServer

NAME = "spot/instance-action"


def test_a_value_is_found_when_it_is_there(ec2_metadata: MetadataServer) -> None:
    ec2_metadata.notice_after = 2
    service = InstanceMetadata()
    assert [service.get(NAME) for _ in range(2)] == [None, None]
    notice = service.get(NAME)
    assert notice is not None
    assert json.loads(notice) == NOTICE
    assert ec2_metadata.tokens == 1


def test_a_token_that_ran_out_is_renewed(ec2_metadata: MetadataServer) -> None:
    service = InstanceMetadata()
    assert service.get(NAME)
    ec2_metadata.tokens = 7  # the old one is no longer taken
    assert service.get(NAME)
    assert ec2_metadata.tokens == 8
