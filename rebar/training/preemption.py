"""Handle requests to stop a run: signals and EC2's spot interruption notice.

The first request saves a checkpoint and stops the run after the current step. A second signal exits immediately. A
thread reads the signals, because Python runs no signal handlers while the main thread blocks in a collective.
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
from rebar.storage.ec2_metadata import SPOT_NOTICE, TIMEOUT_SECONDS, InstanceMetadata

EXIT_PREEMPTED = 75
"""Exit status of an interrupted run that saved a checkpoint and can be restarted: EX_TEMPFAIL of sysexits.h."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_DUPLICATE_SECONDS = 1.0  # the terminal and the launcher may both forward the same Ctrl-C


class StopReason(enum.IntEnum):
    """Reason of a rank to save or stop after a step. The maximum over all ranks wins."""

    NONE = 0
    SAVE = 1
    BUDGET = 2
    SIGUSR1 = 3
    SIGINT = 4
    SIGTERM = 5
    SPOT_NOTICE = 6

    @property
    def is_interruption(self) -> bool:
        """Whether the run stops before it is finished."""
        return self > StopReason.BUDGET

    @property
    def description(self) -> str:
        """The reason as text for messages."""
        words = {
            StopReason.BUDGET: "training.budget_hours are used up",
            StopReason.SPOT_NOTICE: "EC2's spot interruption notice",
        }
        return words.get(self, self.name)


class Interrupted(Exception):
    """Raised after a stop request, once a checkpoint is saved."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason.description)
        self.reason = reason.description


class StopRequest:
    """The request to stop this process, if any. Set by other threads."""

    def __init__(self) -> None:
        self.reason = StopReason.NONE
        self._lock = threading.Lock()
        self._time = 0.0

    def set(self, reason: StopReason) -> None:
        """Request a stop after the current step. Later requests do not change the reason."""
        with self._lock:
            if self.reason is StopReason.NONE:
                self.reason, self._time = reason, time.monotonic()

    def on_signal(self, number: int) -> None:
        """Request a stop, or exit immediately on a second signal."""
        is_second_signal = self.reason not in (StopReason.NONE, StopReason.SPOT_NOTICE)
        if is_second_signal and time.monotonic() - self._time > _DUPLICATE_SECONDS:
            os._exit(128 + number)
        self.set(StopReason[signal.Signals(number).name])


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGINT and SIGUSR1 into a :class:`StopRequest` within the context.

    Outside the main thread, Python allows no signal handlers, so the request is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    previous_handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    previous_wakeup_fd = signal.set_wakeup_fd(writable)
    reader = threading.Thread(target=_read_signals, args=(readable, request), name="rebar-signals", daemon=True)
    reader.start()
    try:
        yield request
    finally:
        signal.set_wakeup_fd(previous_wakeup_fd)
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
        os.close(writable)
        reader.join()
        os.close(readable)


def _read_signals(readable: int, request: StopRequest) -> None:
    while number := os.read(readable, 1):
        if number[0] in _SIGNALS:
            request.on_signal(number[0])


@contextmanager
def watch_for_notice(on_notice: Callable[[], None], *, every_seconds: float = 5.0) -> Iterator[None]:
    """Poll the instance metadata service for the spot interruption notice in a thread, within the context.

    ``on_notice`` is called once, in that thread. The notice, ``spot/instance-action``, appears two minutes before the
    interruption: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    """
    service, stopped = InstanceMetadata(), threading.Event()

    def watch() -> None:
        answered = True
        while not stopped.is_set():
            try:
                if service.get(SPOT_NOTICE) is not None:
                    on_notice()
                    return
                answered = True
            except (OSError, ValueError) as error:
                if answered:  # warn once, not at every poll
                    warn(f"{service.endpoint} does not answer: a spot interruption would not be noticed ({error})")
                answered = False
            stopped.wait(every_seconds)

    watcher = threading.Thread(target=watch, name="rebar-spot-notice", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stopped.set()
        watcher.join(timeout=2 * TIMEOUT_SECONDS)


def is_ec2(dmi: Path = Path("/sys/devices/virtual/dmi/id")) -> bool:
    """Return whether the firmware identifies this machine as an EC2 instance."""
    try:
        return "Amazon EC2" in (dmi / "sys_vendor").read_text()
    except OSError:
        return False
