"""A training that runs beside us: whether it still does, and how it is asked to stop."""

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from rebar.aws.client import AwsError, run_program


class Training(ABC):
    """Started by somebody else."""

    began: float
    """When, in seconds since 1970."""

    @abstractmethod
    def is_running(self) -> bool:
        """Whether any of it is left."""

    @abstractmethod
    def ask_to_stop(self) -> None:
        """Send SIGTERM; nothing where it has ended."""


class OneProcess(Training):
    """A process by its id, such as torchrun, which passes the signal on to its workers.

    Its starting time tells it from a later process of the same id. Raises AwsError where there is none.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        started = _started(pid)
        if started is None:
            raise AwsError(f"there is no process {pid} on this machine: is training running?")
        self._started, self.began = started, _time_of(started)

    def is_running(self) -> bool:
        return _started(self.pid) == self._started

    def ask_to_stop(self) -> None:
        if self.is_running():
            _signal(os.kill, self.pid)

    def __str__(self) -> str:
        return f"process {self.pid}"


class ProcessGroup(Training):
    """All processes of a group, by its leader's id. Raises AwsError where there is none, or where it is our own."""

    def __init__(self, group: int) -> None:
        self.group = group
        if group == os.getpgrp():
            raise AwsError(f"process group {group} is this command's own: start training with setsid, or give --pid")
        started = self._members()
        if not started:
            raise AwsError(f"there is no process group {group} on this machine: is training running?")
        self.began = _time_of(min(started))

    def is_running(self) -> bool:
        return bool(self._members())

    def _members(self) -> list[int]:
        """When those that are left began."""
        return [started for group, started in _living() if group == self.group]

    def ask_to_stop(self) -> None:
        if self.is_running():
            _signal(os.killpg, self.group)

    def __str__(self) -> str:
        return f"process group {self.group}"


class Unit(Training):
    """A unit of systemd. Raises AwsError where it is not active."""

    def __init__(self, name: str) -> None:
        self.name = name
        if not self.is_running():
            raise AwsError(f"systemd's unit {name} is not active: is training running?")
        started = _started(int(self._shown("MainPID") or 0))
        self.began = time.time() if started is None else _time_of(started)

    def is_running(self) -> bool:
        return self._shown("ActiveState") in ("active", "activating", "deactivating", "reloading")

    def _shown(self, name: str) -> str:
        return run_program("systemctl", "show", f"--property={name}", "--value", self.name).stdout.strip()

    def ask_to_stop(self) -> None:
        run_program("systemctl", "kill", "--signal=SIGTERM", self.name)

    def __str__(self) -> str:
        return f"unit {self.name}"


def from_pidfile(path: Path) -> OneProcess:
    """The process whose id a file holds; raises AwsError where it holds none."""
    try:
        return OneProcess(int(path.read_text()))
    except OSError as error:
        raise AwsError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise AwsError(f"{path} does not hold a process id") from None


def _signal(send: Callable[[int, int], None], number: int) -> None:
    try:
        send(number, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError:
        raise AwsError(f"{number} is another user's: run this command as that user, or as root") from None


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None where it has ended."""
    fields = _fields(pid)
    return None if fields is None else int(fields[19])


def _time_of(ticks: int) -> float:
    """A time in clock ticks since boot, in seconds since 1970."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def _living() -> list[tuple[int, int]]:
    """Of every process its group, and when it began."""
    every = (_fields(int(folder.name)) for folder in Path("/proc").glob("[0-9]*"))
    return [(int(fields[2]), int(fields[19])) for fields in every if fields is not None]


def _fields(pid: int) -> list[str] | None:
    """What /proc says after the name: state, parent, group … (proc(5)); None for what has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields
