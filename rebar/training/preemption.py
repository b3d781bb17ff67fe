"""Being asked to stop: signals, and the machine's own notice. The first asks, the second ends at once.

A thread reads the signals from a pipe. So a second one ends the process even where the main thread waits
inside a collective operation, in which Python runs no signal handlers.
"""

import enum
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_PREEMPTED = 75
"""Interrupted, saved, and to be started again: EX_TEMPFAIL of sysexits.h."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SAME_REQUEST_SECONDS = 1.0  # a launcher and a terminal may both pass on one Ctrl-C


class Wish(enum.IntEnum):
    """What a process wants at the end of a step. The processes do what the largest of their wishes says."""

    GO_ON = 0
    SAVE = 1
    BUDGET = 2
    SIGUSR1 = 3
    SIGINT = 4
    SIGTERM = 5
    SPOT_NOTICE = 6

    @property
    def is_interruption(self) -> bool:
        return self > Wish.BUDGET

    @property
    def reason(self) -> str:
        """In words."""
        words = {Wish.BUDGET: "training.budget_hours are used up", Wish.SPOT_NOTICE: "EC2's spot interruption notice"}
        return words.get(self, self.name)


class Interrupted(Exception):
    """Training was asked to stop, and has saved everything."""

    def __init__(self, wish: Wish) -> None:
        super().__init__(wish.reason)
        self.reason = wish.reason


class StopRequest:
    """Whether this process was asked to stop, and by what; set by other threads."""

    def __init__(self) -> None:
        self.wish = Wish.GO_ON
        self._lock = threading.Lock()
        self._asked = 0.0

    def ask(self, wish: Wish) -> None:
        """Ask for a stop after the current step; the first reason counts."""
        with self._lock:
            if self.wish is Wish.GO_ON:
                self.wish, self._asked = wish, time.monotonic()

    def on_signal(self, number: int) -> None:
        """A signal came: ask, or end the process where a signal had asked already."""
        asked_before = self.wish not in (Wish.GO_ON, Wish.SPOT_NOTICE)
        if asked_before and time.monotonic() - self._asked > _SAME_REQUEST_SECONDS:
            os._exit(128 + number)
        self.ask(Wish[signal.Signals(number).name])


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGINT and SIGUSR1 into a :class:`StopRequest` meanwhile.

    Outside the main thread, where Python allows no signal handlers, the request is never made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    earlier_handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    earlier_wakeup = signal.set_wakeup_fd(writable)
    reader = threading.Thread(target=_read_signals, args=(readable, request), name="rebar-signals", daemon=True)
    reader.start()
    try:
        yield request
    finally:
        signal.set_wakeup_fd(earlier_wakeup)
        for number, handler in earlier_handlers.items():
            signal.signal(number, handler)
        os.close(writable)
        reader.join()
        os.close(readable)


def _read_signals(readable: int, request: StopRequest) -> None:
    while number := os.read(readable, 1):
        if number[0] in _SIGNALS:
            request.on_signal(number[0])


def on_ec2(machine: Path = Path("/sys/devices/virtual/dmi/id")) -> bool:
    """Whether this machine says that it is one of EC2's."""
    try:
        return "Amazon EC2" in (machine / "sys_vendor").read_text()
    except OSError:
        return False
