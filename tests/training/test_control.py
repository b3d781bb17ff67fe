"""When a run saves, and when it stops; the processes' agreement is tested with real ones in test_resume.py."""

import pytest

from rebar.training.checkpoint import CheckpointConfig
from rebar.training.control import RunControl
from rebar.training.distributed import World
from rebar.training.pace import Pace
from rebar.training.preemption import Interrupted, StopRequest, Wish


class Saves:
    """Counts, and can be asked when."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.step = 0

    def __call__(self) -> None:
        self.steps.append(self.step)


def make(world: World, config: CheckpointConfig) -> tuple[RunControl, Saves, StopRequest]:
    saves, request = Saves(), StopRequest()
    control = RunControl(config, request, world, save=saves, pace=Pace([32], 10, is_shown=False))
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
