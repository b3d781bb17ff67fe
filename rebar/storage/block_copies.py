"""Verified copies of files in parallel blocks, which resume after an interruption."""

import functools
import json
import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from rebar.cli import progress_bar
from rebar.errors import RebarError
from rebar.storage.files import atomic_write, file_lock, require_space, sync_folder


def copy_blocks(
    target: Path,
    version: Any,
    sizes: Sequence[int],
    copy: Callable[[IO[bytes], int, threading.Event], Any],
    verify: Callable[[Path, Mapping[int, Any]], None],
    *,
    threads: int,
    description: str,
    progress: bool = True,
) -> None:
    """Copy a file to ``target``, which appears once it is complete and verified.

    ``version`` is a JSON value that identifies the source and its blocks: blocks of another version are copied again.
    ``sizes`` are the bytes of the blocks. ``copy(file, block, stop)`` writes one block in a thread, and returns a JSON
    value; it may return early if ``stop`` is set. ``verify(path, values)`` raises RebarError if the complete file is
    damaged, which removes it. Raises OSError, and RebarError ``file-locked`` and ``disk-full``.
    """
    partial, journal, lock = (target.with_name(f".{target.name}.{name}") for name in ("part", "parts", "lock"))
    with file_lock(lock, f"{target}: another process is copying to it. Wait until it has finished."):
        with open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
            values = _read_journal(journal, version) if os.fstat(file.fileno()).st_size == sum(sizes) else {}
            if not values:
                os.ftruncate(file.fileno(), 0)
            missing = {block: size for block, size in enumerate(sizes) if block not in values}
            require_space(target, sum(missing.values()))
            os.ftruncate(file.fileno(), sum(sizes))
            with atomic_write(journal) as (new,):
                new.writelines(_line(each) for each in (version, *values.items()))
            job = functools.partial(copy, file)
            with (
                journal.open("ab", buffering=0) as log,
                closing(run_in_threads(job, missing, threads, description, progress=progress)) as copied,
            ):
                for block, value in copied:
                    log.write(_line((block, value)))
                    values[block] = value
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that verify reads from the disk
        try:
            verify(partial, values)
        except RebarError:
            partial.unlink()
            journal.unlink()
            raise
        os.replace(partial, target)
        journal.unlink()
        sync_folder(target.parent)


def run_in_threads(
    job: Callable[[int, threading.Event], Any],
    sizes: Mapping[int, int],
    threads: int,
    description: str,
    *,
    progress: bool = True,
) -> Generator[tuple[int, Any], None, None]:
    """Run ``job(block, stop)`` for all blocks (block -> bytes); yield each block and its result, as they complete.

    The first error is raised: it sets ``stop``, and cancels the blocks that are not started.
    """
    stop, total = threading.Event(), sum(sizes.values())
    with (
        progress_bar(description, total, "B", enabled=progress) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        futures = {pool.submit(job, block, stop): block for block in sizes}
        try:
            for future in as_completed(futures):
                block = futures[future]
                yield block, future.result()
                bar.update(sizes[block])
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _read_journal(journal: Path, version: Any) -> dict[int, Any]:
    """Return the values of the complete blocks of this version; none if the journal is damaged.

    A kill can truncate the last line; a power failure can leave arbitrary content.
    """
    lines = journal.read_bytes().split(b"\n")[:-1] if journal.is_file() else []
    if not lines or lines[0] + b"\n" != _line(version):
        return {}
    try:
        return dict(json.loads(line) for line in lines[1:])
    except (ValueError, TypeError):
        return {}
