"""Atomic file writes, checks of free disk space, and the user's cache folder."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from rebar.errors import RebarError

CACHE_VARIABLE = "REBAR_CACHE"


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
            temporary.unlink(missing_ok=True)


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
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Atomically replace ``target`` with a hard link to ``source``, or with a copy if hard links are not supported."""
    temporary = target.with_name(f".{target.name}.partial-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
