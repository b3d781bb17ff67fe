"""EC2's notice that a spot machine will be taken away in two minutes.

``spot/instance-action`` is asked for every few seconds; it is missing until the machine is to go.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html

Being asked to stop: signals, and the machine's own notice. The first asks, the second ends at once.

A thread reads the signals from a pipe. So a second one ends the process even where the main thread waits
inside a collective operation, in which Python runs no signal handlers.
"""

import enum
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rebar.cli import warn
from rebar.storage.ec2_metadata import ANSWER_SECONDS, SPOT_NOTICE, InstanceMetadata


@contextmanager
def watch_for_notice(on_notice: Callable[[], None], *, every_seconds: float = 5.0) -> Iterator[None]:
    """Ask for the notice in a thread meanwhile; ``on_notice`` is called once, in that thread."""
    service, over = InstanceMetadata(), threading.Event()

    def watch() -> None:
        answered = True
        while not over.is_set():
            try:
                if service.get(SPOT_NOTICE) is not None:
                    on_notice()
                    return
                answered = True
            except (OSError, ValueError) as error:
                if answered:  # once, not every few seconds
                    warn(f"{service.endpoint} does not answer: a spot interruption would not be noticed ({error})")
                answered = False
            over.wait(every_seconds)

    watcher = threading.Thread(target=watch, name="rebar-spot-notice", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(timeout=2 * ANSWER_SECONDS)


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
