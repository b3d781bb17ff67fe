"""map_in_processes: results in order, in bounded memory, and without hanging when a worker dies."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rebar.beton.worker_pool import BUFFER_BYTES, RESULTS_PER_WORKER, SharedBuffers, map_in_processes, shared_buffers
from rebar.errors import RebarError


def square(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number * number


def fail_at_five(number: int) -> int:
    if number == 5:
        raise RebarError("five is invalid", code="five-invalid")
    return number


def divide(number: int) -> float:
    return 1 / number


def kill_itself_at_five(number: int) -> bytes:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return bytes(1_000_000)


def exit_at_once(number: int) -> None:
    os._exit(3)


def die_while_sending(number: int) -> bytes:
    """Return a result that is larger than the pipe's buffer, and die before it has been sent completely."""
    if number:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return bytes(50_000_000)


def own_pid(number: int) -> int:
    return os.getpid()


class TestMapInProcesses:
    @pytest.mark.parametrize("num_workers", [1, 3])
    def test_results_are_in_task_order(self, num_workers: int) -> None:
        assert list(map_in_processes(square, range(40), num_workers=num_workers)) == [n * n for n in range(40)]

    def test_map_without_tasks_is_empty(self) -> None:
        assert list(map_in_processes(square, [], num_workers=2)) == []

    def test_map_consumes_a_bounded_number_of_tasks_ahead(self) -> None:
        tasks = iter(range(1000))
        with closing(map_in_processes(own_pid, tasks, num_workers=1)) as results:
            for number in range(20):
                next(results)
                assert next(tasks) <= 2 * number + RESULTS_PER_WORKER  # next(tasks) consumes a task too

    def test_rebar_error_is_raised_in_task_order(self) -> None:
        results = map_in_processes(fail_at_five, range(100), num_workers=3)
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(RebarError) as raised:
            next(results)
        assert raised.value.code == "five-invalid"

    def test_other_exceptions_include_the_traceback(self) -> None:
        with pytest.raises(RuntimeError, match=r"in divide(.|\n)*ZeroDivisionError"):
            list(map_in_processes(divide, [1, 0], num_workers=1))

    @pytest.mark.parametrize(
        ("job", "num_workers", "reason"),
        [(kill_itself_at_five, 3, "SIGKILL"), (exit_at_once, 2, "status 3")],
    )
    def test_death_of_a_worker_is_raised(self, job: Any, num_workers: int, reason: str) -> None:
        with pytest.raises(RebarError, match=reason) as raised:
            list(map_in_processes(job, range(100), num_workers=num_workers))
        assert raised.value.code == "worker-died"

    def test_death_of_a_worker_that_is_sending_is_raised(self) -> None:
        with closing(map_in_processes(die_while_sending, range(100), num_workers=1)) as results:
            next(results)
            while multiprocessing.active_children():
                time.sleep(0.01)
            with pytest.raises(RebarError, match="SIGKILL"):
                list(results)

    def test_closing_the_generator_stops_the_processes(self) -> None:
        with closing(map_in_processes(own_pid, range(100), num_workers=2)) as results:
            pid = next(results)
        assert pid != os.getpid()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    def test_map_refuses_zero_workers(self) -> None:
        with pytest.raises(ValueError, match="at least 1"):
            list(map_in_processes(square, [1], num_workers=0))


def result(size: int) -> list[Any]:
    return [np.arange(size, dtype=np.uint8), "text", np.ones((3, 4))[:, ::2], np.zeros(0), np.arange(5)]


def check(found: list[Any], size: int) -> None:
    for one, other in zip(found, result(size), strict=True):
        np.testing.assert_array_equal(one, other)


def pack_in_process(buffers: SharedBuffers, connection: Any) -> None:
    connection.send(buffers.pack(result(1_000_000), 2))
    connection.recv()


class TestSharedBuffers:
    def test_arrays_are_not_in_the_pickle(self) -> None:
        sizes = (300_000, BUFFER_BYTES // 2, 7)
        with shared_buffers(3) as buffers:
            packed = [buffers.pack(result(size), number) for number, size in enumerate(sizes)]
            assert all(len(pickle.dumps(one)) < 1000 for one in packed)
            for number, size in enumerate(sizes):
                check(buffers.unpack(packed[number], number), size)

    @pytest.mark.parametrize("size", [BUFFER_BYTES - 40, BUFFER_BYTES - 39, 3 * BUFFER_BYTES])
    def test_result_larger_than_a_buffer_is_pickled(self, size: int) -> None:
        """The other arrays of the result have 40 bytes."""
        with shared_buffers(2) as buffers:
            next_buffer = buffers.pack(result(1000), 1)
            packed = buffers.pack(result(size), 0)
            assert (packed.sizes == ()) == (size > BUFFER_BYTES - 40)
            check(buffers.unpack(packed, 0), size)
            check(buffers.unpack(next_buffer, 1), 1000)

    def test_buffers_are_shared_with_another_process_and_have_no_name(self) -> None:
        parent_end, worker_end = multiprocessing.Pipe()
        before = set(Path("/dev/shm").iterdir()) if os.path.isdir("/dev/shm") else set()
        with shared_buffers(3) as buffers:
            context = multiprocessing.get_context("forkserver")
            process = context.Process(target=pack_in_process, args=(buffers, worker_end), daemon=True)
            process.start()
        packed = parent_end.recv()
        process.kill()
        process.join()
        assert len(packed.content) < 1000
        check(buffers.unpack(packed, 2), 1_000_000)
        if before:
            assert not [path for path in set(Path("/dev/shm").iterdir()) - before if "buffers" in path.name]
