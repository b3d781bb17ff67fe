"""Files that appear under their names whole and on disk, or not at all."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from rebar.errors import RebarError


@contextmanager
def atomic_write(*targets: Path) -> Iterator[Sequence[IO[bytes]]]:
    """Open a file for each target, which takes its target's name if all goes well, else vanishes.

    They are renamed in the order given. Raises RebarError, naming the last target, where writing fails.
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
    """What to say where writing ``target`` failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RebarError(f"{target}: the disk is full; free some space or write elsewhere")
    return RebarError(f"{target}: cannot be written: {error.strerror or error}")


def sync_folder(folder: Path) -> None:
    """Put the new names on disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
