"""The training loss and accuracy of an epoch."""

import math
import time
from collections.abc import Iterator

import pytest
import torch

from rebar.training.distributed import World
from rebar.training.metrics import TrainMeter


def one_hot(labels: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), 4).float()


def test_averages_are_over_images_and_not_over_batches(world: World) -> None:
    meter = TrainMeter(world.device)
    meter.add(torch.tensor(1.0), one_hot([0, 1, 2]), torch.tensor([0, 1, 3]))  # two of three
    meter.add(torch.tensor(5.0), one_hot([3]), torch.tensor([0]))  # none of one
    assert meter.averages(world) == (2.0, 0.5)
    assert meter.averages(world) == (2.0, 0.5)  # asking changes nothing


def test_it_keeps_no_graph_and_takes_half_precision(world: World) -> None:
    weight = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    meter = TrainMeter(world.device)
    for _ in range(1000):  # bfloat16 itself counts to 256
        logits = one_hot([1]).to(torch.bfloat16) * weight
        meter.add(logits.sum(), logits, torch.tensor([1]))
    assert meter.averages(world) == (1.0, 1.0)
    assert not meter._sums.requires_grad


def test_nan_shows_and_nothing_is_no_division_by_zero(world: World) -> None:
    meter = TrainMeter(world.device)
    assert meter.averages(world) == (0.0, 0.0)
    meter.add(torch.tensor(float("nan")), one_hot([0]), torch.tensor([0]))
    loss, top1 = meter.averages(world)
    assert math.isnan(loss)
    assert top1 == 1.0


def test_it_goes_on_from_a_checkpoint(world: World) -> None:
    meter = TrainMeter(world.device)
    for _ in meter.timed(range(3)):
        meter.add(torch.tensor(1.0), one_hot([0, 1, 2]), torch.tensor([0, 1, 3]))
        meter.end_step()
    resumed = TrainMeter(world.device)
    resumed.load_state_dict(meter.state_dict(world), world)
    assert list(resumed.timed("ab")) == ["a", "b"]
    assert (resumed.steps, resumed.steps_of_pass) == (3, 0)
    resumed.add(torch.tensor(5.0), one_hot([3]), torch.tensor([0]))
    resumed.end_step()
    assert (resumed.steps, resumed.steps_of_pass) == (4, 1)
    assert resumed.averages(world) == (1.4, 0.6)
    assert resumed.seconds > meter.wait_seconds


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def items(self, *waits: float) -> Iterator[int]:
        for number, wait in enumerate(waits):
            self.now += wait
            yield number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    hand_moved = Clock()
    monkeypatch.setattr(time, "perf_counter", hand_moved)
    return hand_moved


def test_waiting_is_added_up_and_work_is_not(world: World, clock: Clock) -> None:
    meter = TrainMeter(world.device)
    seen = []
    for item in meter.timed(clock.items(3, 0, 5)):
        seen.append(item)
        clock.now += 1000  # what the consumer does with it
    assert seen == [0, 1, 2]
    assert meter.wait_seconds == 8
    clock.now += 50
    assert meter.seconds == 3058
    meter.stop_clock()
    clock.now += 50
    assert meter.seconds == 3058


def test_the_wait_before_an_error_counts(world: World, clock: Clock) -> None:
    def failing() -> Iterator[int]:
        clock.now += 7
        raise OSError("disk")
        yield 0

    meter = TrainMeter(world.device)
    with pytest.raises(OSError, match="disk"):
        next(meter.timed(failing()))
    assert meter.wait_seconds == 7
