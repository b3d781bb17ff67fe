"""Tests of rebar.training.stopping; votes of several ranks are tested in tests/test_resume.py."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rebar.storage.aws import InstanceMetadata
from rebar.training.distributed import World
from rebar.training.stopping import RunControl, StopReason, StopRequest, is_ec2, stop_requests, watch_for_notice
from tests.training.metadata_service import MetadataServer


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
        request.on_signal(signal.SIGTERM)  # as the thread that reads signals does
        assert request.reason is StopReason.SIGINT


def test_second_signal_ends_process_that_blocks_in_c_code() -> None:
    code = """if True:
        import ctypes
        from rebar.training.stopping import StopReason, stop_requests
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
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(signal.SIGTERM)  # ignored within a second of the first
            time.sleep(0.05)
        assert process.returncode == 128 + signal.SIGTERM
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
    attempts, attempted_often = [], threading.Event()

    def fail(*_: object) -> None:
        attempts.append(1)
        if len(attempts) > 5:
            attempted_often.set()
        raise ConnectionRefusedError

    monkeypatch.setattr(InstanceMetadata, "get", fail)
    with watch_for_notice(lambda: pytest.fail("there is no notice"), every_seconds=0.01):
        assert attempted_often.wait(10)
    assert capsys.readouterr().err.count("does not answer") == 1


def start(world: World, used_seconds: float = 0.0, **options: Any) -> tuple[RunControl, StopRequest]:
    control, request = RunControl(world, **options), StopRequest()
    control.start(request, used_seconds=used_seconds)
    return control, request


def saved_after(control: RunControl, steps: int) -> list[int]:
    """Return the steps after which a checkpoint is due."""
    return [step for step in range(1, steps + 1) if control.after_step(step) is StopReason.SAVE]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every_steps": 3}, [3, 6]),
        ({"every_minutes": 1e-9}, [1, 2, 3, 4, 5, 6, 7]),
        ({"every_minutes": 10.0}, []),
        ({}, []),
    ],
    ids=str,
)
def test_after_step_saves_by_steps_and_by_time(options: dict[str, Any], expected: list[int], world: World) -> None:
    control, _ = start(world, **options)
    assert saved_after(control, 7) == expected


def test_after_step_measures_the_time_since_the_last_save(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    control, _ = start(world, every_minutes=1.0)
    now += 61
    assert control.after_step(1) is StopReason.SAVE
    control.restart_save_timer()
    now += 59
    assert control.after_step(2) is StopReason.NONE


@pytest.mark.parametrize(
    ("limits", "last_step", "decision", "reason"),
    [
        ({"max_steps": 4}, 4, StopReason.SAVE, "max_steps 4"),
        ({"budget_seconds": 1e-6}, 1, StopReason.BUDGET, "budget_hours"),
        ({"budget_seconds": 3600.0}, 0, StopReason.NONE, ""),
    ],
    ids=str,
)
def test_limit_ends_the_run_with_a_checkpoint(
    limits: dict[str, Any], last_step: int, decision: StopReason, reason: str, world: World
) -> None:
    control, _ = start(world)
    control.set_limits(step=0, **limits)
    decisions = []
    while not control.is_over and len(decisions) < 9:
        decisions.append(control.after_step(len(decisions) + 1))
    assert decisions[-1] is decision
    assert len(decisions) == (last_step or 9)
    assert reason in control.limit
    assert control.is_over == bool(last_step)


@pytest.mark.parametrize(("step", "limits"), [(5, {"max_steps": 5}), (5, {"budget_seconds": 9.0})])
def test_set_limits_counts_earlier_attempts(step: int, limits: dict[str, Any], world: World) -> None:
    control, _ = start(world, used_seconds=10.0)
    control.set_limits(step=step, **limits)
    assert control.is_over


def test_run_seconds_include_earlier_attempts(world: World) -> None:
    control, _ = start(world, used_seconds=100.0)
    assert control.run_seconds >= 100


@pytest.mark.parametrize("decide", [lambda control: control.after_step(1), RunControl.during_evaluation])
def test_first_stop_request_decides(decide: Callable[[RunControl], StopReason], world: World) -> None:
    control, request = start(world)
    assert decide(control) is StopReason.NONE
    request.set(StopReason.SPOT_NOTICE)
    request.set(StopReason.SIGTERM)
    assert decide(control) is StopReason.SPOT_NOTICE


def test_during_evaluation_ignores_periodic_saves(world: World) -> None:
    control, _ = start(world, every_minutes=1e-9)
    assert control.during_evaluation() is StopReason.NONE


def test_after_step_before_start_requests_nothing(world: World) -> None:
    control = RunControl(world, every_minutes=1e-9)
    assert control.after_step(1) is control.during_evaluation() is StopReason.NONE
    control.close()


@pytest.mark.parametrize(
    ("target", "metrics", "reached"),
    [
        (0.759, {"val/top1": 0.759}, True),
        (75.9, {"val/top1": 0.75, "val/top1_tta": 0.76}, True),
        (75.9, {"val/top1": 0.75}, False),
        (0.0, {"val/top1": 0.75}, False),
        (0.5, {}, False),
    ],
)
def test_check_target(target: float, metrics: dict[str, float], reached: bool, world: World) -> None:
    control = RunControl(world)
    control.check_target(metrics, target_top1=target)
    assert control.is_over == reached
