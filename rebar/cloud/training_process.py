"""A training that runs beside us: whether it still does, and how it is asked to stop."""

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from rebar.cloud.errors import CloudError
from rebar.cloud.shell import run_program


class Training(ABC):
    """Started by somebody else."""

    @abstractmethod
    def is_running(self) -> bool:
        """Whether any of it is left."""

    @abstractmethod
    def ask_to_stop(self) -> None:
        """Send SIGTERM; nothing where it has ended."""


class OneProcess(Training):
    """A process by its id, such as torchrun, which passes the signal on to its workers.

    Its starting time tells it from a later process of the same id. Raises CloudError where there is none.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        started = _started(pid)
        if started is None:
            raise CloudError(f"there is no process {pid} on this machine: is training running?")
        self._began = started

    def is_running(self) -> bool:
        return _started(self.pid) == self._began

    def ask_to_stop(self) -> None:
        if self.is_running():
            _signal(os.kill, self.pid)

    def __str__(self) -> str:
        return f"process {self.pid}"


class ProcessGroup(Training):
    """All processes of a group, by its leader's id. Raises CloudError where there is none, or where it is our own."""

    def __init__(self, group: int) -> None:
        self.group = group
        if group == os.getpgrp():
            raise CloudError(f"process group {group} is this command's own: start training with setsid, or give --pid")
        if not self.is_running():
            raise CloudError(f"there is no process group {group} on this machine: is training running?")

    def is_running(self) -> bool:
        return any(group == self.group for _, group in _living())

    def ask_to_stop(self) -> None:
        if self.is_running():
            _signal(os.killpg, self.group)

    def __str__(self) -> str:
        return f"process group {self.group}"


class Unit(Training):
    """A unit of systemd. Raises CloudError where it is not active."""

    def __init__(self, name: str) -> None:
        self.name = name
        if not self.is_running():
            raise CloudError(f"systemd's unit {name} is not active: is training running?")

    def is_running(self) -> bool:
        told = run_program("systemctl", "show", "--property=ActiveState", "--value", self.name)
        return told.stdout.strip() in ("active", "activating", "deactivating", "reloading")

    def ask_to_stop(self) -> None:
        run_program("systemctl", "kill", "--signal=SIGTERM", self.name)

    def __str__(self) -> str:
        return f"unit {self.name}"


def from_pidfile(path: Path) -> OneProcess:
    """The process whose id a file holds; raises CloudError where it holds none."""
    try:
        return OneProcess(int(path.read_text()))
    except OSError as error:
        raise CloudError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise CloudError(f"{path} does not hold a process id") from None


def _signal(send: Callable[[int, int], None], number: int) -> None:
    try:
        send(number, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError:
        raise CloudError(f"{number} is another user's: run this command as that user, or as root") from None


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None where it has ended."""
    fields = _fields(pid)
    return None if fields is None else int(fields[19])


def _living() -> list[tuple[int, int]]:
    """Every process, and its group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _fields(int(folder.name))
        if fields is not None:
            found.append((int(folder.name), int(fields[2])))
    return found


def _fields(pid: int) -> list[str] | None:
    """What /proc says after the name: state, parent, group … (proc(5)); None for what has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields
