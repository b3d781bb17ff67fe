"""Memory that processes share: the arrays of a result are read where another process wrote them.

Through a pipe they would be copied four times. The memory has no name, so that nothing of it is left when the last
process that holds it has ended, however it did.
"""

import mmap
import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import reduction
from typing import IO, Any, NamedTuple

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
