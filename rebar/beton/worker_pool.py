"""Memory that processes share: the arrays of a result are read where another process wrote them.

Through a pipe they would be copied four times. The memory has no name, so that nothing of it is left when the last
process that holds it has ended, however it did.

The same work on many tasks, in processes of its own, results in the order of the tasks.

``concurrent.futures.ProcessPoolExecutor`` waits for ever where a process dies half-way through sending a
result, because all of its processes share one pipe whose writing end stays open. Here each has its own,
so the end of a process is the end of its pipe, whenever it comes. It works the other way round, too:
processes whose parent is gone end themselves. Arrays do not go through the pipes, but through memory that is shared.
"""

import mmap
import multiprocessing
import os
import pickle
import signal
import tempfile
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver, reduction, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from rebar.errors import RebarError

SLOT_BYTES = 8 << 20
"""Addresses; a slot takes as much memory as the largest result that was ever put into it."""


class Packed(NamedTuple):
    """A result on its way: pickled, but for what lies in its slot, of so many bytes each, one behind the other."""

    content: bytes
    sizes: tuple[int, ...]


class SharedSlots:
    """Slots in a file without a name."""

    def __init__(self, file: IO[bytes], count: int) -> None:
        self._file, self._count = file, count
        self._memory = memoryview(mmap.mmap(file.fileno(), count * SLOT_BYTES))

    def __reduce__(self) -> Any:
        return _attach, (reduction.DupFd(self._file.fileno()), self._count)

    def pack(self, result: Any, slot: int) -> Packed:
        """Put the arrays of a result into a slot; where they do not fit, all of it is pickled."""
        buffers: list[pickle.PickleBuffer] = []
        content = pickle.dumps(result, 5, buffer_callback=buffers.append)
        parts = [buffer.raw() for buffer in buffers]
        if sum(part.nbytes for part in parts) > SLOT_BYTES:
            return Packed(pickle.dumps(result, 5), ())
        at = slot * SLOT_BYTES
        for part in parts:
            self._memory[at : at + part.nbytes] = part
            at += part.nbytes
        return Packed(content, tuple(part.nbytes for part in parts))

    def unpack(self, packed: Packed, slot: int) -> Any:
        """The result. Its arrays lie in the slot, and are its own until another result is put there."""
        parts, at = [], slot * SLOT_BYTES
        for size in packed.sizes:
            parts.append(self._memory[at : at + size])
            at += size
        return pickle.loads(packed.content, buffers=parts)


@contextmanager
def new_slots(count: int) -> Iterator[SharedSlots]:
    """``count`` slots. Within the block they can be sent to processes that are being started."""
    with _nameless_file() as file:
        file.truncate(count * SLOT_BYTES)
        yield SharedSlots(file, count)


def _nameless_file() -> IO[bytes]:
    return os.fdopen(os.memfd_create("slots"), "r+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()


def _attach(handle: Any, count: int) -> SharedSlots:
    with open(handle.detach(), "r+b") as file:
        return SharedSlots(file, count)


Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_A_PROCESS = 2
"""One in work and one waiting, so that no process waits for the parent."""
RESULTS_A_PROCESS = 4
"""Tasks handed out and not yet yielded, for each process: what bounds the memory."""
_READY = -1


@dataclass
class _Finished:
    result: Any
    error: Exception | None
    slot: int


@dataclass(eq=False)
class _Process:
    process: multiprocessing.process.BaseProcess
    connection: "Connection[Any, Any]"
    ready: bool = False
    slots: dict[int, int] = field(default_factory=dict)
    """Of each task in its hands, where the result goes."""


def map_in_processes(
    job: Callable[[Task], Result], tasks: Iterable[Task], *, num_workers: int
) -> Generator[Result, None, None]:
    """Yield ``job(task)`` for every task, in order, worked out by ``num_workers`` processes.

    ``job`` is pickled once and sent to each process once; tasks should be small. The arrays of a result are overwritten
    once the next one is asked for: copy what is to stay. Close the generator (``contextlib.closing``) to end the
    processes early. An exception of the job is raised in its task's turn: a RebarError as it is, any other as a
    RuntimeError with the traceback. Raises RebarError where a process dies.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, not {num_workers}")
    content = pickle.dumps(job, pickle.HIGHEST_PROTOCOL)
    todo = enumerate(tasks)
    workers: list[_Process] = []
    finished: dict[int, _Finished] = {}
    free = list(range(num_workers * RESULTS_A_PROCESS))
    num_yielded, exhausted = 0, False
    try:
        with new_slots(len(free)) as slots:
            _start(workers, num_workers, slots)
        while True:
            while free and not exhausted:
                worker = _least_busy(workers)
                if worker is None:
                    break
                item = next(todo, None)
                if item is None:
                    exhausted = True
                else:
                    number, task = item
                    worker.slots[number] = free.pop()
                    _send(worker, pickle.dumps((number, task, worker.slots[number])))
            if exhausted and not finished and not any(worker.slots for worker in workers):
                return
            by_connection: dict[Any, _Process] = {worker.connection: worker for worker in workers}
            for connection in wait(list(by_connection), timeout=0 if num_yielded in finished else None):
                _receive(by_connection[connection], content, slots, finished)
            if num_yielded in finished:
                done = finished.pop(num_yielded)
                num_yielded += 1
                if done.error is not None:
                    raise done.error
                yield done.result
                free.append(done.slot)
    finally:
        _stop(workers)


def _start(workers: list[_Process], num_workers: int, slots: SharedSlots) -> None:
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__.rpartition(".")[0]])
    # Ctrl-C reaches the whole process group, but is the parent's to answer: the processes are born with
    # it blocked. The tracker goes first because starting it unblocks the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        if context.get_start_method() == "forkserver":
            with _same_package_first():
                forkserver.ensure_running()
        for _ in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, slots), daemon=True)
            process.start()
            theirs.close()  # else the pipe would not end with the process
            workers.append(_Process(process, ours))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _same_package_first() -> Iterator[None]:
    """Let processes started in the block find this package, not another of its name that is installed or lies in the
    current folder: until Python 3.13 what makes the processes is not told where to look."""
    root = str(Path(__file__).resolve().parents[2])
    wanted = {
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONSAFEPATH": "1",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _stop(workers: list[_Process]) -> None:
    for worker in workers:
        worker.process.terminate()
        worker.connection.close()
    for worker in workers:
        worker.process.join(timeout=5)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _least_busy(workers: list[_Process]) -> _Process | None:
    """The process with the fewest tasks, if any has room for another."""
    free = [worker for worker in workers if worker.ready and len(worker.slots) < TASKS_A_PROCESS]
    return min(free, key=lambda worker: len(worker.slots), default=None)


def _send(worker: _Process, message: bytes) -> None:
    try:
        worker.connection.send_bytes(message)
    except OSError:
        raise _died(worker) from None


def _receive(worker: _Process, job: bytes, slots: SharedSlots, finished: dict[int, _Finished]) -> None:
    try:
        number, packed = worker.connection.recv()
    except (EOFError, OSError):
        raise _died(worker) from None
    if number == _READY:
        _send(worker, job)  # not before: a process that still starts would keep the parent waiting
        worker.ready = True
    else:
        slot = worker.slots.pop(number)
        result, error = slots.unpack(packed, slot)
        finished[number] = _Finished(result, error, slot)


def _died(worker: _Process) -> RebarError:
    worker.process.join(timeout=5)
    code = worker.process.exitcode
    if code is not None and code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    else:
        how = f"ended with exit status {code}"
    hint = "; the machine may be out of memory: try fewer workers" if code == -signal.SIGKILL else ""
    return RebarError(f"a worker process (pid {worker.process.pid}) {how}{hint}")


def _work(connection: "Connection[Any, Any]", slots: SharedSlots) -> None:
    """What a process does: take the job, then tasks, until it is ended or its parent is gone."""
    try:
        connection.send((_READY, None))
        job = pickle.loads(connection.recv_bytes())
        while True:
            number, task, slot = connection.recv()
            result: Any = None
            error: Exception | None = None
            try:
                result = job(task)
            except RebarError as expected:
                error = expected
            except Exception:
                error = RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
            connection.send((number, slots.pack((result, error), slot)))
    except (EOFError, OSError):
        pass
