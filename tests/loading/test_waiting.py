"""Time spent waiting for an iterator, and no other time."""

import time
from collections.abc import Iterator

import pytest

from rebar.loading.waiting import WaitTimer


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


def test_waiting_is_added_up_and_work_is_not(clock: Clock) -> None:
    timer = WaitTimer(clock.items(3, 0, 5))
    seen = []
    for item in timer:
        seen.append(item)
        clock.now += 1000  # what the consumer does with it
    assert seen == [0, 1, 2]
    assert timer.seconds == 8


def test_the_wait_before_an_error_or_the_end_counts(clock: Clock) -> None:
    def failing() -> Iterator[int]:
        clock.now += 7
        raise OSError("disk")
        yield 0

    timer = WaitTimer(failing())
    with pytest.raises(OSError, match="disk"):
        next(timer)
    assert timer.seconds == 7
    with pytest.raises(StopIteration):
        next(timer)
