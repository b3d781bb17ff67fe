"""Decide after every step whether to save a checkpoint or to stop. All ranks decide the same at the same step."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from rebar.storage.ec2_metadata import has_custom_endpoint
from rebar.training.distributed import StopVote, World
from rebar.training.preemption import StopReason, StopRequest, is_ec2, stop_requests, watch_for_notice


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
        decision = self._decide(self._own_reason())
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

    def _own_reason(self) -> StopReason:
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
