"""Files that one process at a time works on."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rebar.errors import RebarError


@contextmanager
def file_lock(path: Path, refusal: str) -> Iterator[IO[bytes]]:
    """Open a file to read and write, made where it is missing, and hold it against other processes.

    Raises RebarError with the message ``refusal`` where another process holds it. Where the file system knows no locks,
    nothing is held.
    """
    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RebarError(refusal) from None
            except OSError:
                pass
            if _is_still(path, file):
                yield file
                return
        # the one who held it has just finished, and removed it


def _is_still(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
