"""Find the processes of training on this machine, and send them SIGTERM."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from rebar.aws.client import run_program
from rebar.storage.boto import AwsError


@dataclass(frozen=True)
class Training:
    """Training that another command started."""

    name: str
    started: float
    """Start time, in seconds since 1970."""
    is_running: Callable[[], bool]
    stop: Callable[[], None]
    """Send SIGTERM if training is running."""


def process(pid: int) -> Training:
    """Return the training of a process, such as torchrun (which forwards SIGTERM to its workers).

    Its start time distinguishes it from a later process with the same id. Raises AwsError ``training-not-running``.
    """
    try:
        found = psutil.Process(pid)
        return Training(f"process {pid}", _start_time_of(found), lambda: _is_alive(found), lambda: _terminate([found]))
    except psutil.NoSuchProcess:
        raise _not_running(f"process {pid}") from None


def process_from_pidfile(path: Path) -> Training:
    """Return the training of the process whose id is in a file. Raises AwsError ``pidfile-invalid``."""
    try:
        return process(int(path.read_text()))
    except (OSError, ValueError) as error:
        raise AwsError(f"{path}: no process id can be read: {error}.", code="pidfile-invalid") from None


def process_group(group: int) -> Training:
    """Return the training of a process group. Raises AwsError ``training-not-running``, also for this process's own."""
    if group == os.getpgrp():
        raise AwsError(
            f"process group {group} is the one of this command. Start training with setsid, or use --pid.",
            code="training-not-running",
        )

    def members() -> list[psutil.Process]:
        return [each for each in psutil.process_iter() if _group_of(each) == group and _is_alive(each)]

    found = members()
    if not found:
        raise _not_running(f"process group {group}")
    started = min(map(_start_time_of, found))
    return Training(f"process group {group}", started, lambda: bool(members()), lambda: _terminate(members()))


def systemd_unit(name: str) -> Training:
    """Return the training of a systemd unit. Raises AwsError ``training-not-running`` if it is not active."""

    def show(what: str) -> str:
        return run_program("systemctl", "show", f"--property={what}", "--value", name).stdout.strip()

    def is_running() -> bool:
        return show("ActiveState") in ("active", "activating", "deactivating", "reloading")

    if not is_running():
        raise _not_running(f"the systemd unit {name}")
    started = time.time()
    with suppress(psutil.Error, ValueError):
        started = _start_time_of(psutil.Process(int(show("MainPID"))))
    return Training(
        f"unit {name}", started, is_running, lambda: _ignore(run_program("systemctl", "kill", "--signal=SIGTERM", name))
    )


def _not_running(name: str) -> AwsError:
    return AwsError(f"{name} is not running on this machine. Start training first.", code="training-not-running")


def _start_time_of(found: psutil.Process) -> float:
    """Return the start time of a process. psutil rounds the boot time to seconds, so this uses the exact one."""
    exact_boot_time = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return float(found.create_time()) - psutil.boot_time() + exact_boot_time


def _is_alive(found: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(found.is_running() and found.status() != psutil.STATUS_ZOMBIE)
    return False


def _group_of(found: psutil.Process) -> int | None:
    try:
        return os.getpgid(found.pid)
    except ProcessLookupError:
        return None


def _terminate(processes: list[psutil.Process]) -> None:
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            try:
                each.send_signal(signal.SIGTERM)
            except psutil.AccessDenied:
                raise AwsError(
                    f"process {each.pid} belongs to another user. Run this command as that user, or as root.",
                    code="training-not-permitted",
                ) from None


def _ignore(_: object) -> None:
    return None
