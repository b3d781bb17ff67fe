"""Map a function over worker processes, with results in task order and arrays in shared memory.

``concurrent.futures.ProcessPoolExecutor`` blocks indefinitely if a worker dies while it sends a result, because all
workers share one pipe. Here every worker has its own pipe, so the parent detects its death. Workers exit when
their parent dies.
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

BUFFER_BYTES = 8 << 20
"""Address space of one buffer; its memory grows with the largest result stored in it."""


class PackedResult(NamedTuple):
    """A pickled result without its arrays, which are in a shared buffer, and their sizes in bytes."""

    content: bytes
    sizes: tuple[int, ...]


class SharedBuffers:
    """A pool of buffers in memory shared between processes.

    Sending arrays through a pipe copies them four times. The memory is an unnamed file, so it is released when the
    last process that maps it exits.
    """

    def __init__(self, file: IO[bytes], count: int) -> None:
        self._file, self._count = file, count
        self._memory = memoryview(mmap.mmap(file.fileno(), count * BUFFER_BYTES))

    def __reduce__(self) -> Any:
        return _attach, (reduction.DupFd(self._file.fileno()), self._count)

    def pack(self, result: Any, number: int) -> PackedResult:
        """Copy the arrays of a result into a buffer; if they do not fit, pickle them with the result."""
        buffers: list[pickle.PickleBuffer] = []
        content = pickle.dumps(result, 5, buffer_callback=buffers.append)
        parts = [buffer.raw() for buffer in buffers]
        if sum(part.nbytes for part in parts) > BUFFER_BYTES:
            return PackedResult(pickle.dumps(result, 5), ())
        position = number * BUFFER_BYTES
        for part in parts:
            self._memory[position : position + part.nbytes] = part
            position += part.nbytes
        return PackedResult(content, tuple(part.nbytes for part in parts))

    def unpack(self, packed: PackedResult, number: int) -> Any:
        """Return the result. Its arrays are views of the buffer, valid until the buffer is used again."""
        parts, position = [], number * BUFFER_BYTES
        for size in packed.sizes:
            parts.append(self._memory[position : position + size])
            position += size
        return pickle.loads(packed.content, buffers=parts)


@contextmanager
def shared_buffers(count: int) -> Iterator[SharedBuffers]:
    """Allocate ``count`` buffers. Within the block, they can be passed to processes that are being started."""
    with _unnamed_file() as file:
        file.truncate(count * BUFFER_BYTES)
        yield SharedBuffers(file, count)


def _unnamed_file() -> IO[bytes]:
    return os.fdopen(os.memfd_create("buffers"), "r+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()


def _attach(handle: Any, count: int) -> SharedBuffers:
    with open(handle.detach(), "r+b") as file:
        return SharedBuffers(file, count)


Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_PER_WORKER = 2
"""One running and one queued, so that workers do not wait for the parent."""
RESULTS_PER_WORKER = 4
"""Tasks per worker that have been sent and whose results have not been yielded; bounds the memory."""
PRELOADED_MODULES = ["rebar.beton.encode"]
"""Imported once by the fork server instead of by every worker."""
_READY = -1


@dataclass
class _Finished:
    result: Any
    error: Exception | None
    buffer: int


@dataclass(eq=False)
class _Worker:
    process: multiprocessing.process.BaseProcess
    connection: "Connection[Any, Any]"
    ready: bool = False
    buffers: dict[int, int] = field(default_factory=dict)
    """Task number -> buffer for its result."""


def map_in_processes(
    job: Callable[[Task], Result], tasks: Iterable[Task], *, num_workers: int
) -> Generator[Result, None, None]:
    """Yield ``job(task)`` for every task, in task order, computed by ``num_workers`` processes.

    ``job`` is pickled once and sent to every process once; tasks should be small. The arrays of a result are
    overwritten when the next result is requested, so copy arrays that must be kept. Close the generator
    (``contextlib.closing``) to stop the processes early. An exception of the job is raised when its result is due: a
    RebarError as is, any other as RuntimeError with the traceback. Raises RebarError if a process dies.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, not {num_workers}")
    content = pickle.dumps(job, pickle.HIGHEST_PROTOCOL)
    pending = enumerate(tasks)
    workers: list[_Worker] = []
    finished: dict[int, _Finished] = {}
    free_buffers = list(range(num_workers * RESULTS_PER_WORKER))
    num_yielded, exhausted = 0, False
    try:
        with shared_buffers(len(free_buffers)) as buffers:
            _start(workers, num_workers, buffers)
        while True:
            while free_buffers and not exhausted:
                worker = _least_busy(workers)
                if worker is None:
                    break
                item = next(pending, None)
                if item is None:
                    exhausted = True
                else:
                    number, task = item
                    worker.buffers[number] = free_buffers.pop()
                    _send(worker, pickle.dumps((number, task, worker.buffers[number])))
            if exhausted and not finished and not any(worker.buffers for worker in workers):
                return
            by_connection: dict[Any, _Worker] = {worker.connection: worker for worker in workers}
            for connection in wait(list(by_connection), timeout=0 if num_yielded in finished else None):
                _receive(by_connection[connection], content, buffers, finished)
            if num_yielded in finished:
                done = finished.pop(num_yielded)
                num_yielded += 1
                if done.error is not None:
                    raise done.error
                yield done.result
                free_buffers.append(done.buffer)
    finally:
        _stop(workers)


def _start(workers: list[_Worker], num_workers: int, buffers: SharedBuffers) -> None:
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(PRELOADED_MODULES)
    # Ctrl-C signals the entire process group, but only the parent must handle it, so workers inherit a blocked
    # SIGINT. The resource tracker is started first because starting it unblocks the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        if context.get_start_method() == "forkserver":
            with _import_path_of_this_package():
                forkserver.ensure_running()
        for _ in range(num_workers):
            parent_end, worker_end = context.Pipe()
            process = context.Process(target=_run_worker, args=(worker_end, buffers), daemon=True)
            process.start()
            worker_end.close()  # so that the pipe closes when the worker dies
            workers.append(_Worker(process, parent_end))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _import_path_of_this_package() -> Iterator[None]:
    """Make the fork server import this package instead of another ``rebar`` that is installed or in the current folder.

    Before Python 3.13, multiprocessing does not pass ``sys.path`` to the fork server.
    """
    root = str(Path(__file__).resolve().parents[2])
    variables = {
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONSAFEPATH": "1",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
        worker.connection.close()
    for worker in workers:
        worker.process.join(timeout=5)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _least_busy(workers: list[_Worker]) -> _Worker | None:
    """Return the worker with the fewest tasks, or None if all queues are full."""
    available = [worker for worker in workers if worker.ready and len(worker.buffers) < TASKS_PER_WORKER]
    return min(available, key=lambda worker: len(worker.buffers), default=None)


def _send(worker: _Worker, message: bytes) -> None:
    try:
        worker.connection.send_bytes(message)
    except OSError:
        raise _worker_died(worker) from None


def _receive(worker: _Worker, job: bytes, buffers: SharedBuffers, finished: dict[int, _Finished]) -> None:
    try:
        number, packed = worker.connection.recv()
    except (EOFError, OSError):
        raise _worker_died(worker) from None
    if number == _READY:
        _send(worker, job)  # sending to a worker that is still starting would block the parent
        worker.ready = True
    else:
        buffer = worker.buffers.pop(number)
        result, error = buffers.unpack(packed, buffer)
        finished[number] = _Finished(result, error, buffer)


def _worker_died(worker: _Worker) -> RebarError:
    worker.process.join(timeout=5)
    code = worker.process.exitcode
    if code is not None and code < 0:
        reason = f"was killed by {signal.Signals(-code).name}"
    else:
        reason = f"exited with status {code}"
    hint = " The machine may be out of memory: use fewer workers." if code == -signal.SIGKILL else ""
    return RebarError(
        f"worker process {worker.process.pid}: {reason}.{hint} Run the same command again.", code="worker-died"
    )


def _run_worker(connection: "Connection[Any, Any]", buffers: SharedBuffers) -> None:
    """Receive the job, then run it for every task, until the process is stopped or its parent dies."""
    try:
        connection.send((_READY, None))
        job = pickle.loads(connection.recv_bytes())
        while True:
            number, task, buffer = connection.recv()
            result: Any = None
            error: Exception | None = None
            try:
                result = job(task)
            except RebarError as expected:
                error = expected
            except Exception:
                error = RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
            connection.send((number, buffers.pack((result, error), buffer)))
    except (EOFError, OSError):
        pass
