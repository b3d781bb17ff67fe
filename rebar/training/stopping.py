"""Decide after every step whether a run saves or stops: limits, signals and EC2's spot interruption notice.

The first stop request saves a checkpoint and stops the run after the current step. A second signal exits immediately.
A thread reads the signals, because Python runs no signal handlers while the main thread blocks in a collective. All
ranks reach the same decision at the same step.
"""

import enum
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rebar.cli import warn
from rebar.storage.aws import SPOT_NOTICE, TIMEOUT_SECONDS, InstanceMetadata, has_custom_endpoint
from rebar.training.distributed import StopVote, World

EXIT_PREEMPTED = 75
"""Exit status of an interrupted run that saved a checkpoint and can be restarted: EX_TEMPFAIL of sysexits.h."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_DUPLICATE_SECONDS = 1.0  # the terminal and the launcher may both forward the same Ctrl-C


class StopReason(enum.IntEnum):
    """Why a rank wants to save or stop after a step. The maximum over all ranks wins."""

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


class RunControl:
    """Tracks the limits of a run, its stop requests and its checkpoint schedule.

    Every rank votes after each step; the votes are exchanged while the next step runs. Before :meth:`start`, there are
    no votes and no time-based checkpoints.
    """

    def __init__(self, world: World, *, every_steps: int = 0, every_minutes: float = 0.0) -> None:
        """Save within an epoch every ``every_steps`` steps and every ``every_minutes`` minutes; 0: never."""
        self._world = world
        self._every_steps, self._every_minutes = every_steps, every_minutes
        self.request = StopRequest()
        self._vote: StopVote | None = None
        self._max_steps = 0
        self._budget_seconds = 0.0
        self._used_seconds = 0.0
        self._started = self._saved = time.monotonic()
        self.limit = ""
        """Description of the limit that was reached; empty if none was."""

    def start(self, request: StopRequest, *, used_seconds: float = 0.0) -> None:
        """Start the clock and the votes. ``used_seconds`` is the duration of earlier attempts."""
        self.request, self._vote, self._used_seconds = request, StopVote(self._world), used_seconds
        self._started = self._saved = time.monotonic()

    def set_limits(self, *, step: int, max_steps: int = 0, budget_seconds: float = 0.0) -> None:
        """Limit the run's steps and time, including earlier attempts; 0: no limit. ``step`` is the current step."""
        self._max_steps, self._budget_seconds = max_steps, budget_seconds
        if max_steps and step >= max_steps:
            self.limit = f"training.max_steps {max_steps}"
        if budget_seconds and self._used_seconds >= budget_seconds:
            self.limit = StopReason.BUDGET.description

    @property
    def is_over(self) -> bool:
        """Whether a limit was reached."""
        return bool(self.limit)

    @property
    def run_seconds(self) -> float:
        """Duration of the run in seconds, including earlier attempts."""
        return self._used_seconds + time.monotonic() - self._started

    def after_step(self, step: int) -> StopReason:
        """Return the joint decision of all ranks after ``step`` steps of the run. Every rank must call it."""
        if self._max_steps and step >= self._max_steps:
            self.limit = f"training.max_steps {self._max_steps}"
        decision = self._decide(self._local_reason())
        if decision is StopReason.BUDGET:
            self.limit = decision.description
        is_due = self._every_steps > 0 and step % self._every_steps == 0
        return StopReason.SAVE if decision is StopReason.NONE and (self.limit or is_due) else decision

    def during_evaluation(self) -> StopReason:
        """Return the joint decision between two batches of an evaluation. Only stop requests count."""
        return self._decide(self.request.reason)

    def check_target(self, metrics: Mapping[str, float], *, target_top1: float) -> None:
        """Set the limit if validation top-1 has reached the target, a fraction or a percentage; 0: no target."""
        target = target_top1 / 100 if target_top1 > 1 else target_top1
        top1 = max(metrics.get("val/top1", 0.0), metrics.get("val/top1_tta", 0.0))
        if target and top1 >= target and not self.limit:
            self.limit = f"training.target_top1: {top1:.2%} is at least {target:.2%}"

    def restart_save_timer(self) -> None:
        """Restart the timer of ``every_minutes``."""
        self._saved = time.monotonic()

    def close(self) -> None:
        """Wait for the pending vote."""
        if self._vote is not None:
            self._vote.finish()

    def _decide(self, reason: StopReason) -> StopReason:
        return StopReason(self._vote.cast(reason)) if self._vote is not None else StopReason.NONE

    def _local_reason(self) -> StopReason:
        if self.request.reason is not StopReason.NONE or not self._world.is_main:
            return self.request.reason
        if self._budget_seconds and self.run_seconds >= self._budget_seconds:
            return StopReason.BUDGET
        is_due = self._every_minutes and time.monotonic() - self._saved >= 60 * self._every_minutes
        return StopReason.SAVE if is_due else StopReason.NONE


@contextmanager
def listen_for_stop(world: World, *, spot_notice: str, poll_seconds: float) -> Iterator[StopRequest]:
    """Turn signals and EC2's spot interruption notice into one stop request.

    ``spot_notice``: on, off, or auto (EC2 instances only). One rank of each node polls every ``poll_seconds``.
    """
    polls = spot_notice == "on" or (spot_notice == "auto" and (is_ec2() or has_custom_endpoint()))
    with ExitStack() as stack:
        request = stack.enter_context(stop_requests())
        if polls and world.is_local_main:
            stack.enter_context(
                watch_for_notice(lambda: request.set(StopReason.SPOT_NOTICE), every_seconds=poll_seconds)
            )
        yield request
