"""Exclusive locks between processes, based on the ``filelock`` library."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rebar.errors import RebarError
from rebar.storage.files import check_writable, write_error

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def file_lock(path: Path, message: str, *, timeout: float = 0, required: bool = False) -> Iterator[None]:
    """Lock the file ``path`` for the duration of the block, and remove it afterwards.

    ``path`` is a separate lock file, such as ``.train.beton.lock``, not the protected file. The operating system
    releases the lock when the process exits or is killed. ``timeout``: seconds to wait for another process;
    negative: wait indefinitely. On file systems without locks, the block runs unlocked unless the lock is ``required``.

    Raises RebarError: ``file-locked`` with the text ``message`` if another process has the lock,
    ``file-not-writable`` if the lock file cannot be created, ``file-locks-unsupported`` if a required lock is not
    supported by the file system.
    """
    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
    except Timeout:
        check_writable(path)  # filelock also times out if the folder allows no files
        raise RebarError(message, code="file-locked") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise write_error(path, error) from None
        if required:
            raise RebarError(
                f"{path}: this file system does not support file locks ({error.strerror}). Use another file system.",
                code="file-locks-unsupported",
            ) from None
    try:
        yield
    finally:
        if lock.is_locked:
            path.unlink(missing_ok=True)  # before the release: a waiting process then locks a new file
            lock.release()
