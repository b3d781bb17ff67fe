"""Questions to the instance metadata service, over HTTP as on a machine of EC2."""

import json
from collections.abc import Iterator

import pytest

from rebar.instance_metadata import InstanceMetadata
from tests.training.metadata_service import NOTICE, MetadataServer, metadata_server

NAME = "spot/instance-action"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataServer]:
    with metadata_server() as server:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be asked
        yield server


def test_a_value_is_found_when_it_is_there(server: MetadataServer) -> None:
    server.notice_after = 2
    service = InstanceMetadata()
    assert [service.get(NAME) for _ in range(2)] == [None, None]
    notice = service.get(NAME)
    assert notice is not None
    assert json.loads(notice) == NOTICE
    assert server.tokens == 1


def test_a_token_that_ran_out_is_renewed(server: MetadataServer) -> None:
    service = InstanceMetadata()
    assert service.get(NAME)
    server.tokens = 7  # the old one is no longer taken
    assert service.get(NAME)
    assert server.tokens == 8
