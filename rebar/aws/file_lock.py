"""A file that one process at a time may hold."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rebar.aws.client import AwsError


@contextmanager
def held(path: Path, refusal: str) -> Iterator[int]:
    """Open a file, made where it is missing, and hold it meanwhile; the system lets it go however its holder ends.

    Yields its descriptor. Raises AwsError, with the message ``refusal`` where another process holds it.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise AwsError(f"{path.parent}: cannot be written to: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AwsError(refusal) from None
        yield handle
    finally:
        os.close(handle)
