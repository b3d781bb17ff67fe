"""When a run saves, and when it stops; the processes' agreement is tested with real ones in test_resume.py."""

import functools
import threading
import time
from collections.abc import Callable

import pytest

from rebar.training.checkpoint import CheckpointConfig, CheckpointError
from rebar.training.control import RunControl
from rebar.training.distributed import World
from rebar.training.preemption import Interrupted, StopRequest, Wish


class Saves:
    """Counts, and can be asked when. Writes only while it may."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.step = 0
        self.written: list[int] = []
        self.fails_at: set[int] = set()
        self.may_write = threading.Event()
        self.may_write.set()

    def __call__(self) -> Callable[[], None]:
        self.steps.append(self.step)
        step = self.step
        return lambda: self.write(step)

    def write(self, step: int) -> None:
        """On the other thread."""
        assert self.may_write.wait(timeout=30)
        if step in self.fails_at:
            raise CheckpointError(f"step {step} cannot be written")
        self.written.append(step)


def make(world: World, config: CheckpointConfig) -> tuple[RunControl, Saves, StopRequest]:
    saves, request = Saves(), StopRequest()
    control = RunControl(config, request, world, take=saves)
    control.set_limits(steps=0, max_steps=0, budget_seconds=0, used_seconds=0)
    return control, saves, request


def go(control: RunControl, saves: Saves, steps: int) -> int:
    """The step after which it said to leave, or 0."""
    for saves.step in range(1, steps + 1):
        if control.after_step(saves.step):
            return saves.step
    return 0


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CheckpointConfig(every_steps=3), [3, 6]),
        (CheckpointConfig(every_minutes=0), []),
        (CheckpointConfig(every_minutes=1e-9), [1, 2, 3, 4, 5, 6, 7]),
        (CheckpointConfig(), []),
    ],
)
def test_saves_by_steps_and_by_time(config: CheckpointConfig, expected: list[int], world: World) -> None:
    control, saves, _ = make(world, config)
    assert go(control, saves, 7) == 0
    assert saves.steps == expected


@pytest.mark.parametrize(
    ("limits", "leaves_after", "words"),
    [
        ({"max_steps": 4}, 4, "max_steps 4"),
        ({"budget_seconds": 1e-6}, 1, "budget_hours"),
        ({"budget_seconds": 3600}, 0, ""),
    ],
)
def test_a_limit_saves_and_leaves(limits: dict[str, float], leaves_after: int, words: str, world: World) -> None:
    control, saves, _ = make(world, CheckpointConfig())
    everything = {"steps": 0, "max_steps": 0, "budget_seconds": 0, "used_seconds": 0} | limits
    control.set_limits(**everything)  # type: ignore[arg-type]
    assert go(control, saves, 9) == leaves_after
    assert saves.steps == ([leaves_after] if leaves_after else [])
    assert words in control.limit
    assert control.is_over() == bool(leaves_after)


@pytest.mark.parametrize(
    "limits",
    [
        {"steps": 5, "max_steps": 5, "budget_seconds": 0, "used_seconds": 0},
        {"steps": 5, "max_steps": 0, "budget_seconds": 9, "used_seconds": 10},
    ],
)
def test_a_limit_reached_by_earlier_attempts(limits: dict[str, int], world: World) -> None:
    control, _, _ = make(world, CheckpointConfig())
    control.set_limits(**limits)
    assert control.is_over()


def test_asked_to_stop_it_saves_first(world: World) -> None:
    control, saves, request = make(world, CheckpointConfig())
    assert go(control, saves, 2) == 0
    request.ask(Wish.SPOT_NOTICE)
    request.ask(Wish.SIGTERM)  # later; the first reason counts
    with pytest.raises(Interrupted, match="EC2's spot interruption notice"):
        go(control, saves, 1)
    assert saves.steps == [1]


def test_an_evaluation_is_left_too(world: World) -> None:
    control, saves, request = make(world, CheckpointConfig())
    batches = control.watched("abc")
    assert next(batches) == "a"
    request.ask(Wish.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM"):
        next(batches)
    assert saves.steps == [0]


def test_training_goes_on_while_a_checkpoint_is_written(world: World) -> None:
    control, saves, _ = make(world, CheckpointConfig(every_steps=5))
    saves.may_write.clear()
    assert go(control, saves, 9) == 0
    assert (saves.steps, saves.written) == ([5], [])
    saves.may_write.set()
    control.wait_until_saved()
    assert saves.written == [5]


def test_the_next_checkpoint_is_not_taken_before_the_last_is_written(world: World) -> None:
    control, saves, _ = make(world, CheckpointConfig())
    saves.may_write.clear()
    control.save()
    second = threading.Thread(target=control.save)
    second.start()
    second.join(timeout=0.2)
    assert second.is_alive()
    assert len(saves.steps) == 1
    saves.may_write.set()
    second.join(timeout=30)
    control.wait_until_saved()
    assert len(saves.steps) == len(saves.written) == 2


@pytest.mark.parametrize("in_evaluation", [False, True])
def test_asked_to_stop_it_leaves_when_all_is_written(in_evaluation: bool, world: World) -> None:
    control, saves, request = make(world, CheckpointConfig())
    saves.may_write.clear()
    request.ask(Wish.SIGTERM)
    threading.Timer(0.2, saves.may_write.set).start()
    with pytest.raises(Interrupted):
        list(control.watched("abc")) if in_evaluation else go(control, saves, 1)
    assert len(saves.written) == 1


def test_what_could_not_be_written_is_raised_after_a_later_step_and_once(world: World) -> None:
    control, saves, _ = make(world, CheckpointConfig(every_steps=5))
    saves.fails_at = {5}

    def go_on() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            control.after_step(6)

    go(control, saves, 5)
    with pytest.raises(CheckpointError, match="step 5 cannot be written"):
        go_on()
    control.wait_until_saved()
    assert saves.written == []


@pytest.mark.parametrize("how", ["the next save", "an interruption", "the end"])
def test_what_could_not_be_written_is_never_lost(how: str, world: World) -> None:
    control, saves, request = make(world, CheckpointConfig())
    saves.fails_at = {0}
    if how == "an interruption":
        request.ask(Wish.SIGTERM)
        raised_by: Callable[[], object] = functools.partial(control.after_step, 1)
    else:
        control.save()
        raised_by = control.save if how == "the next save" else control.wait_until_saved
    with pytest.raises(CheckpointError, match="step 0 cannot be written"):
        raised_by()
