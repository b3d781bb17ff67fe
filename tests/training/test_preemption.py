"""Signals become a request; the handlers of before come back; the second signal ends the process."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rebar.training.preemption import StopRequest, Wish, on_ec2, stop_requests


def wait_for(request: StopRequest, wish: Wish) -> None:
    deadline = time.monotonic() + 10
    while request.wish is not wish:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_is_a_request(name: str) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)
    with stop_requests() as request:
        assert request.wish is Wish.GO_ON
        os.kill(os.getpid(), signal.Signals[name])
        wait_for(request, Wish[name])
        assert request.wish.is_interruption
    after = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)
    assert after == before
    assert not any(thread.name == "rebar-signals" for thread in threading.enumerate())


def test_a_signal_passed_on_twice_at_once_is_one_request() -> None:
    with stop_requests() as request:
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(request, Wish.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        assert request.wish is Wish.SIGINT


def test_a_second_signal_ends_the_process_even_inside_a_call_that_never_returns() -> None:
    code = """if True:
        import ctypes
        from rebar.training.preemption import Wish, stop_requests
        with stop_requests() as request:
            print("ready", flush=True)
            while request.wish is Wish.GO_ON:
                pass
            print("asked", flush=True)
            wait = ctypes.CDLL(None).sem_wait  # for ever; no Python handler runs in here
            semaphore = ctypes.create_string_buffer(64)
            while True:
                wait(semaphore)
    """
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        time.sleep(1.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()


def test_the_machine_says_whether_it_is_ec2s(tmp_path: Path) -> None:
    assert not on_ec2(tmp_path)
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    assert on_ec2(tmp_path)
