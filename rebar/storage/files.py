"""Write files: atomically, and under locks between processes; cache folders."""

import errno
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from rebar.errors import RebarError

CACHE_VARIABLE = "REBAR_CACHE"
_HASH_BYTES = 4 << 20  # per read


@contextmanager
def atomic_write(*targets: Path) -> Iterator[Sequence[IO[bytes]]]:
    """Open a temporary file for each target; on success, fsync the files and rename them to their targets.

    The files are renamed in the given order. On any exception, all temporary files are removed and the targets keep
    their previous contents. Raises RebarError (``disk-full``, ``file-not-writable``) if writing fails.
    """
    partial = [target.with_name(f".{target.name}.partial-{os.getpid()}") for target in targets]
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("wb", buffering=1 << 20)) for path in partial]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for temporary, target in zip(partial, targets, strict=True):
            os.replace(temporary, target)
        sync_folder(targets[-1].parent)
    except OSError as error:
        raise write_error(targets[-1], error) from None
    finally:
        for temporary in partial:
            with suppress(OSError):  # a read-only file system refuses it even for a missing file
                temporary.unlink(missing_ok=True)


def write_at(file: IO[bytes], content: bytes | memoryview, position: int) -> None:
    """Write bytes at a position of an open file. Raises OSError unless all are written.

    A single write to a disk with too little room writes the part that fits, without an error.
    """
    view = memoryview(content)
    while view:
        written = os.pwrite(file.fileno(), view, position)
        view, position = view[written:], position + written


def write_small_file(target: Path, content: bytes) -> None:
    """Replace a file of up to a disk block; on a full disk, overwrite it in place. Raises RebarError as above."""
    try:
        with atomic_write(target) as (file,):
            file.write(content)
    except RebarError as error:
        if error.code != "disk-full" or not target.is_file():
            raise
        try:
            with target.open("r+b", buffering=0) as existing:  # its block usually has room
                if len(content) > os.fstat(existing.fileno()).st_blocks * 512:
                    raise error
                write_at(existing, content, 0)
                existing.truncate(len(content))
        except OSError:
            raise error from None


def write_error(target: Path, error: OSError) -> RebarError:
    """Translate an OSError of writing ``target`` to a RebarError."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RebarError(f"{target}: the disk is full. Free some space, or write to another disk.", code="disk-full")
    return RebarError(
        f"{target} cannot be written: {error.strerror or error}. Check the path and its permissions.",
        code="file-not-writable",
    )


def check_writable(target: Path) -> None:
    """Raise RebarError (``file-not-writable``) if ``target`` could not be written, before the work for it starts."""
    folder = target.parent
    if not folder.is_dir():
        reason = f"{folder} is not a folder" if folder.exists() else f"there is no folder {folder}"
    elif target.is_dir():
        reason = "it is a folder"
    elif not os.access(folder, os.W_OK):  # False on a read-only file system, even for root
        reason = f"no permission to write to {folder}"
    elif (error := _error_of_creating(folder)) is not None:
        raise write_error(target, error)
    else:
        return
    raise RebarError(
        f"{target} cannot be written: {reason}. Check the path and its permissions.", code="file-not-writable"
    )


def check_output(target: Path, *, overwrite: bool) -> None:
    """Raise RebarError if ``target`` exists and may not be replaced, or could not be written."""
    if target.exists() and not target.is_dir() and not overwrite:
        raise RebarError(
            f"{target} already exists. Add --overwrite to replace it, or choose another path.",
            code="write-target-exists",
        )
    check_writable(target)


def _error_of_creating(folder: Path) -> OSError | None:
    """Create and remove a temporary file. ``/proc``, for example, appears to be writable but is not."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error
    return None


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that renames in it survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_space(target: Path, needed: int) -> None:
    """Raise RebarError (``disk-full``) if the disk of ``target``'s folder has less than ``needed`` bytes free."""
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise RebarError(
            f"{target}: {needed / 1e9:.1f} GB are needed, but only {free / 1e9:.1f} GB are free in {target.parent}. "
            "Free some space, or write to another disk.",
            code="disk-full",
        )


def user_cache() -> Path:
    """Return ``$XDG_CACHE_HOME/rebar``, or ``~/.cache/rebar``. The folder may not exist.

    https://specifications.freedesktop.org/basedir-spec/latest/
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "rebar"


def cache_folder() -> Path:
    """Return ``$REBAR_CACHE``, or else :func:`user_cache`: the folder of converted datasets and indexes."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else user_cache()


def sha256_of(file: IO[bytes]) -> str:
    """Return the SHA-256 of an open file from its current position, as hexadecimal digits."""
    return hash_of(file).hexdigest()


def hash_of(
    file: IO[bytes], algorithm: str = "sha256", *, size: int | None = None, on_read: Callable[[int], object] = int
) -> Any:
    """Return hashlib's hash of ``size`` bytes of an open file, or of all, from its current position.

    ``on_read`` is called with the number of bytes of each read.
    """
    content, left = hashlib.new(algorithm, usedforsecurity=False), sys.maxsize if size is None else size
    while chunk := file.read(min(_HASH_BYTES, left)):
        content.update(chunk)
        on_read(len(chunk))
        left -= len(chunk)
    return content


def link_or_copy(source: Path, target: Path) -> None:
    """Atomically replace ``target`` with a hard link to ``source``, or with a copy if hard links are not supported."""
    temporary = target.with_name(f".{target.name}.partial-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


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
