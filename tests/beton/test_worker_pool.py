"""Work in processes: in order, in bounded memory, and never a hang."""

import os
import signal
import time
from contextlib import closing

import pytest

from rebar.beton.worker_pool import RESULTS_A_PROCESS, map_in_processes
from rebar.errors import RebarError


def square(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number * number


def fail_at_five(number: int) -> int:
    if number == 5:
        raise RebarError("five is no good")
    return number


def divide(number: int) -> float:
    return 1 / number


def kill_itself_at_five(number: int) -> bytes:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return bytes(1_000_000)


def exit_at_once(number: int) -> None:
    os._exit(3)


def large(number: int) -> bytes:
    return bytes(50_000_000)


def own_pid(number: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_results_are_in_the_order_of_the_tasks(num_workers: int) -> None:
    assert list(map_in_processes(square, range(40), num_workers=num_workers)) == [n * n for n in range(40)]


def test_nothing_to_do() -> None:
    assert list(map_in_processes(square, [], num_workers=2)) == []


def test_no_more_tasks_are_taken_than_fit_into_memory() -> None:
    tasks = iter(range(1000))
    with closing(map_in_processes(own_pid, tasks, num_workers=1)) as results:
        for number in range(20):
            next(results)
            assert next(tasks) <= 2 * number + RESULTS_A_PROCESS  # every look takes a task, too


def test_an_expected_error_comes_in_its_turn() -> None:
    results = map_in_processes(fail_at_five, range(100), num_workers=3)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(RebarError, match="five is no good"):
        next(results)


def test_an_unexpected_error_brings_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"in divide(.|\n)*ZeroDivisionError"):
        list(map_in_processes(divide, [1, 0], num_workers=1))


def test_a_killed_process_is_noticed() -> None:
    begin = time.monotonic()
    with pytest.raises(RebarError, match=r"was killed by SIGKILL; .*out of memory"):
        list(map_in_processes(kill_itself_at_five, range(100), num_workers=3))
    assert time.monotonic() - begin < 10


def test_a_process_that_exits_is_noticed() -> None:
    with pytest.raises(RebarError, match="ended with exit status 3"):
        list(map_in_processes(exit_at_once, range(9), num_workers=2))


def test_a_process_killed_while_it_sends_is_noticed() -> None:
    pids = list(map_in_processes(own_pid, range(1), num_workers=1))
    assert pids[0] != os.getpid()
    with closing(map_in_processes(large, range(100), num_workers=1)) as results:
        next(results)
        worker = results.gi_frame.f_locals["workers"][0]
        time.sleep(0.5)  # the next result is larger than the pipe, so the process is now sending it
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(RebarError, match="SIGKILL"):
            list(results)


def test_processes_end_with_the_generator() -> None:
    with closing(map_in_processes(own_pid, range(100), num_workers=2)) as results:
        pid = next(results)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_no_processes_are_no_use() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        list(map_in_processes(square, [1], num_workers=0))
