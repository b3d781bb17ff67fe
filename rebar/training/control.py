"""Decide after every step whether to save a checkpoint or to stop, the same at the same step on all ranks."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from rebar.storage.ec2_metadata import has_custom_endpoint
from rebar.training.distributed import StopVote, World
from rebar.training.preemption import StopReason, StopRequest, is_ec2, stop_requests, watch_for_notice


class RunControl:
    """The limits of a run, its stop requests, and when its checkpoints are due.

    Every rank votes after each step; the votes are exchanged while the next step is computed. Before :meth:`start`,
    no vote takes place and nothing is due by time.
    """

    def __init__(self, world: World, *, every_steps: int = 0, every_minutes: float = 0.0) -> None:
        """``every_steps`` and ``every_minutes`` between checkpoints within an epoch; 0: none."""
        self._world = world
        self._every_steps, self._every_minutes = every_steps, every_minutes
        self.request = StopRequest()
        self._vote: StopVote | None = None
        self._max_steps = 0
        self._budget_seconds = 0.0
        self._used_seconds = 0.0
        self._started = self._saved = time.monotonic()
        self.limit = ""
        """Description of the limit that was reached; empty before."""

    def start(self, request: StopRequest, *, used_seconds: float = 0.0) -> None:
        """Start the clock and vote from now on. ``used_seconds`` is the time that earlier attempts took."""
        self.request, self._vote, self._used_seconds = request, StopVote(self._world), used_seconds
        self._started = self._saved = time.monotonic()

    def set_limits(self, *, step: int, max_steps: int = 0, budget_seconds: float = 0.0) -> None:
        """Limit the run's steps and time, earlier attempts included; 0: no limit. ``step`` is the steps done so far."""
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
        """Duration of the run, earlier attempts included."""
        return self._used_seconds + time.monotonic() - self._started

    def after_step(self, step: int) -> StopReason:
        """Return the ranks' decision after ``step`` steps of the run. Every rank must call it at the same step."""
        if self._max_steps and step >= self._max_steps:
            self.limit = f"training.max_steps {self._max_steps}"
        decision = self._decide(self._own_reason())
        if decision is StopReason.BUDGET:
            self.limit = decision.description
        is_due = self._every_steps > 0 and step % self._every_steps == 0
        return StopReason.SAVE if decision is StopReason.NONE and (self.limit or is_due) else decision

    def during_evaluation(self) -> StopReason:
        """Return the ranks' decision between two batches of an evaluation, where only stop requests count."""
        return self._decide(self.request.reason)

    def check_target(self, metrics: Mapping[str, float], *, target_top1: float) -> None:
        """Set the limit if validation top-1 has reached the target, a fraction or a percentage; 0: no target."""
        target = target_top1 / 100 if target_top1 > 1 else target_top1
        top1 = max(metrics.get("val/top1", 0.0), metrics.get("val/top1_tta", 0.0))
        if target and top1 >= target and not self.limit:
            self.limit = f"training.target_top1: {top1:.2%} is at least {target:.2%}"

    def note_saved(self) -> None:
        """Restart the time between checkpoints."""
        self._saved = time.monotonic()

    def close(self) -> None:
        """Receive the last votes of the other ranks."""
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
    """Collect signals, and EC2's spot interruption notice, in one stop request.

    ``spot_notice``: on, off, or auto for machines of EC2 only. One rank of each node polls every ``poll_seconds``.
    """
    polls = spot_notice == "on" or (spot_notice == "auto" and (is_ec2() or has_custom_endpoint()))
    with ExitStack() as stack:
        request = stack.enter_context(stop_requests())
        if polls and world.is_local_main:
            stack.enter_context(
                watch_for_notice(lambda: request.set(StopReason.SPOT_NOTICE), every_seconds=poll_seconds)
            )
        yield request
