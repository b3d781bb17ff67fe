"""Memory for batches, used again as soon as nobody looks at it any more.

Fresh memory costs a page fault every 4 KB, each time; a fixed ring of buffers would be overwritten while
the consumer still holds a batch. A slot is lent as an array, and comes back when that array, and all that
was made of it (views, tensors, their storages), is gone.
"""

import mmap
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray


class SlotPool:
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
