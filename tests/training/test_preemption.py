"""Requests to stop: signals, a second signal, and EC2's spot interruption notice."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rebar.training.preemption import StopReason, StopRequest, is_ec2, stop_requests, watch_for_notice
from tests.training.metadata_service import MetadataServer, metadata_server


def wait_for(request: StopRequest, reason: StopReason) -> None:
    deadline = time.monotonic() + 10
    while request.reason is not reason:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_signal_sets_stop_request_and_handlers_are_restored(name: str) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)
    with stop_requests() as request:
        assert request.reason is StopReason.NONE
        os.kill(os.getpid(), signal.Signals[name])
        wait_for(request, StopReason[name])
        assert request.reason.is_interruption
    after = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)
    assert after == before
    assert not any(thread.name == "rebar-signals" for thread in threading.enumerate())


def test_signals_in_quick_succession_are_one_request() -> None:
    with stop_requests() as request:
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(request, StopReason.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        assert request.reason is StopReason.SIGINT


def test_second_signal_ends_process_that_blocks_in_c_code() -> None:
    code = """if True:
        import ctypes
        from rebar.training.preemption import StopReason, stop_requests
        with stop_requests() as request:
            print("ready", flush=True)
            while request.reason is StopReason.NONE:
                pass
            print("requested", flush=True)
            wait = ctypes.CDLL(None).sem_wait  # blocks indefinitely; no Python signal handler runs
            semaphore = ctypes.create_string_buffer(64)
            while True:
                wait(semaphore)
    """
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "requested\n"
        time.sleep(1.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()


def test_is_ec2_reads_firmware(tmp_path: Path) -> None:
    assert not is_ec2(tmp_path)
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    assert is_ec2(tmp_path)


def test_watch_for_notice_calls_back_once(ec2_metadata: MetadataServer) -> None:
    ec2_metadata.notice_after = 3
    called, calls = threading.Event(), []

    def on_notice() -> None:
        calls.append(ec2_metadata.questions)
        called.set()

    with watch_for_notice(on_notice, every_seconds=0.01):
        assert called.wait(10)
    assert calls == [4]


def test_watch_for_notice_warns_once_without_service(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with metadata_server() as server:
        stopped = server.url
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", stopped)
    with watch_for_notice(lambda: pytest.fail("there is no notice"), every_seconds=0.01):
        time.sleep(0.2)
    assert capsys.readouterr().err.count("does not answer") == 1
