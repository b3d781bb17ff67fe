"""After every step: is it time to save, or to stop? All processes come to one answer at one step.

A save holds the loop up for as long as the copy takes; it is written beside it. The next one, and whoever leaves, waits
until that is done.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from rebar.storage.ec2_metadata import endpoint_is_given
from rebar.training.checkpoint import BackgroundSave, CheckpointConfig
from rebar.training.distributed import Agreement, World
from rebar.training.estimate import TimeEstimate
from rebar.training.health import HealthWatch
from rebar.training.preemption import Interrupted, StopRequest, Wish, on_ec2, stop_requests, watch_for_notice

Batch = TypeVar("Batch")


class RunControl:
    """Saves by steps, by time, and when the run is asked to stop; notices when its limits are reached."""

    def __init__(
        self,
        config: CheckpointConfig,
        request: StopRequest,
        world: World,
        *,
        take: Callable[[], Callable[[], None] | None],
    ) -> None:
        """``take`` is called by all processes at once. It takes a checkpoint, and returns what writes it, if any."""
        self._config = config
        self._request = request
        self._world = world
        self._agreement = Agreement(world)
        self._take = take
        self._writing = BackgroundSave()
        self._max_steps = 0
        self._budget_seconds = 0.0
        self._started = self._saved = time.monotonic()
        self.health = HealthWatch()
        self.estimate: TimeEstimate | None = None
        """Says how long the run will take; None where nobody listens."""
        self.limit = ""
        """The limit that ended training before its last epoch, in words; empty while there is none."""

    def set_limits(self, *, steps: int, max_steps: int, budget_seconds: float, used_seconds: float) -> None:
        """0 is no limit; ``steps`` and ``used_seconds`` are those of earlier attempts."""
        self._max_steps = max_steps
        if max_steps and steps >= max_steps:
            self.limit = f"training.max_steps {max_steps}"
        if budget_seconds:
            self._budget_seconds = max(budget_seconds - used_seconds, 1e-9)
            if used_seconds >= budget_seconds:
                self.limit = Wish.BUDGET.reason

    def is_over(self) -> bool:
        """Whether a limit has ended training."""
        return bool(self.limit)

    @property
    def seconds(self) -> float:
        """Since this attempt started."""
        return time.monotonic() - self._started

    def after_step(self, steps: int) -> bool:
        """After so many steps of the run: whether to leave the epoch, a limit having been reached.

        Raises Interrupted, after saving, where any process was asked to stop, and CheckpointError where the last
        checkpoint could not be written.
        """
        self._writing.raise_failure()
        if self._max_steps and steps >= self._max_steps:
            self.limit = f"training.max_steps {self._max_steps}"
        decision = Wish(self._agreement.decide(self._wish()))
        if decision is Wish.BUDGET:
            self.limit = decision.reason
        if decision is not Wish.GO_ON or self.limit or self._falls_on(steps):
            self.save()
        self._leave_if_interrupted(decision)
        return self.is_over()

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass the batches of an evaluation through, unless any process is asked to stop: as :meth:`after_step`."""
        for batch in batches:
            yield batch
            self._writing.raise_failure()
            decision = Wish(self._agreement.decide(self._request.wish))
            if decision.is_interruption:
                self.save()
            self._leave_if_interrupted(decision)

    def save(self) -> None:
        """Take a checkpoint, and begin to write it; every process must come here.

        Raises CheckpointError where the one before could not be written.
        """
        self._writing.wait()  # what is taken next replaces it in memory
        write = self._take()
        if write is not None:
            self._writing.start(write)
        self._saved = time.monotonic()

    def wait_until_saved(self) -> None:
        """Return when the last checkpoint is on disk. Raises CheckpointError where it could not be written."""
        self._writing.wait()

    def close(self) -> None:
        """Read what the processes sent each other last."""
        self._agreement.settle()

    def _leave_if_interrupted(self, decision: Wish) -> None:
        if decision.is_interruption:
            self.wait_until_saved()
            raise Interrupted(decision)

    def _wish(self) -> Wish:
        if self._request.wish is not Wish.GO_ON:
            return self._request.wish
        if self._world.is_main and self._budget_seconds and self.seconds >= self._budget_seconds:
            return Wish.BUDGET
        due = self._config.every_minutes and time.monotonic() - self._saved >= 60 * self._config.every_minutes
        return Wish.SAVE if due and self._world.is_main else Wish.GO_ON

    def _falls_on(self, steps: int) -> bool:
        return self._config.every_steps > 0 and steps % self._config.every_steps == 0


@contextmanager
def asked_to_stop(config: CheckpointConfig, world: World) -> Iterator[StopRequest]:
    """Signals meanwhile, and the spot notice where ``config`` and the machine say so, as one request."""
    looks = config.spot_notice == "on" or (config.spot_notice == "auto" and (on_ec2() or endpoint_is_given()))
    with ExitStack() as stack:
        request = stack.enter_context(stop_requests())
        if looks and world.is_first_here:
            watch = watch_for_notice(lambda: request.ask(Wish.SPOT_NOTICE), every_seconds=config.spot_poll_seconds)
            stack.enter_context(watch)
        yield request


def target_reached(target: float, metrics: dict[str, float]) -> str:
    """In words that validation top-1 has reached ``target`` (a share of 1, or percent); empty if it has not."""
    share = target / 100 if target > 1 else target
    top1 = max(metrics.get("val/top1", 0.0), metrics.get("val/top1_tta", 0.0))
    return f"training.target_top1: {top1:.2%} is at least {share:.2%}" if share and top1 >= share else ""
