"""EC2's interruption notice, asked for over HTTP as the machine's own service is."""

import threading

import pytest

from rebar.training.preemption import watch_for_notice
from tests.training.metadata_service import MetadataServer, metadata_server


def test_the_watcher_calls_once(ec2_metadata: MetadataServer) -> None:
    ec2_metadata.notice_after = 3
    noticed, calls = threading.Event(), []

    def on_notice() -> None:
        calls.append(ec2_metadata.questions)
        noticed.set()

    with watch_for_notice(on_notice, every_seconds=0.01):
        assert noticed.wait(10)
    assert calls == [4]


def test_no_service_is_told_once_and_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with metadata_server() as server:
        gone = server.url
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", gone)
    asked = threading.Event()
    with watch_for_notice(lambda: pytest.fail("there is no notice"), every_seconds=0.01):
        asked.wait(0.2)
    assert capsys.readouterr().err.count("does not answer") == 1
