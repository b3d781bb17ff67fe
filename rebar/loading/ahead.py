"""Work that threads do ahead of its consumer.

The consumer asks for a result; that starts another piece of work. No thread waits for anything but work,
and the consumer waits for threads that have it: there is nobody to wait for in vain. What goes wrong in a
thread is raised at the result it belongs to.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Result = TypeVar("Result")
Wait = Callable[[], Result]
"""Waits for work that was started, and gives its result or raises its error."""
Start = Callable[[ThreadPoolExecutor], Wait[Result]]
"""Starts a piece of work on the threads."""


class Later(Generic[Result]):
    """A value that is made when the first thread asks for it."""

    def __init__(self, make: Callable[[], Result]) -> None:
        self._make = make
        self._made: list[Result] = []
        self._lock = threading.Lock()

    def get(self) -> Result:
        """The value, the same for all."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]


def shares(count: int, threads: int) -> list[slice]:
    """Cut ``count`` items into a slice a thread, none empty; at least one."""
    parts = max(1, min(count, threads))
    return [slice(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def work_ahead(pieces: Iterable[Start[Result]], *, num_threads: int, ahead: int) -> Generator[Result, None, None]:
    """The pieces' results in order, ``ahead`` pieces being worked on beside the one that is waited for.

    The threads live as long as this generator: they end with it, also where it is left early.
    """
    with ThreadPoolExecutor(num_threads, thread_name_prefix="rebar-loader") as threads:
        started: deque[Wait[Result]] = deque()
        try:
            for start in pieces:
                started.append(start(threads))
                if len(started) > ahead:
                    yield started.popleft()()
            while started:
                yield started.popleft()()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
