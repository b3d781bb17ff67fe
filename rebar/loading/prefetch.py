"""Work that threads do ahead of its consumer.

The consumer asks for a result; that starts another piece of work. No thread waits for anything but work,
and the consumer waits for threads that have it: there is nobody to wait for in vain. What goes wrong in a
thread is raised at the result it belongs to.

Memory for batches, used again as soon as nobody looks at it any more.

Fresh memory costs a page fault every 4 KB, each time; a fixed ring of buffers would be overwritten while
the consumer still holds a batch. A slot is lent as an array, and comes back when that array, and all that
was made of it (views, tensors, their storages), is gone.
"""

import mmap
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

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


def prefetch(pieces: Iterable[Start[Result]], *, num_threads: int, ahead: int) -> Generator[Result, None, None]:
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


class BufferPool:
    """Lends memory for batches; keeps up to ``keep`` slots that came back for the next ones."""

    def __init__(self, keep: int) -> None:
        self._idle: deque[mmap.mmap] = deque(maxlen=keep)  # appending and popping are atomic

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """Uninitialised uint8 ``[nbytes]``."""
        memory = self._idle_of(nbytes) or mmap.mmap(-1, max(nbytes, 1))
        # NumPy lets a view refer to the array that owns the memory and forget the ones between. Here no
        # array owns it, so all views refer to this one, and its end is the end of the last of them.
        lent = np.frombuffer(memory, np.uint8, nbytes)
        weakref.finalize(lent, self._idle.append, memory).atexit = False
        return lent

    def _idle_of(self, nbytes: int) -> mmap.mmap | None:
        """An idle slot large enough; smaller ones, of an earlier resolution, are let go."""
        while True:
            try:
                memory = self._idle.pop()
            except IndexError:
                return None
            if len(memory) >= nbytes:
                return memory
