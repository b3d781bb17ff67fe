"""Copy .beton files to a fast disk: in parallel, verified, and going on where an earlier copy was broken off.

    python -m rebar.beton.staging /mnt/ebs/imagenet /mnt/nvme/imagenet
    python -m rebar.beton.staging /mnt/ebs/imagenet/train.beton /mnt/nvme/imagenet

A volume fresh from a snapshot, or a network disk, answers many reads at once much faster than one after the other. What
is read is compared with the sidecar's checksums; what was written is read back from the disk and compared, too.
"""

import argparse
import json
import os
import shutil
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from rebar.beton.format import BetonError
from rebar.beton.parallel_io import Block, divide, in_threads, read_block, write_at
from rebar.beton.partial_file import append_record, read_records
from rebar.beton.sidecar import Checksums, read_sidecar, sidecar_path
from rebar.beton.write_report import report_path
from rebar.cli import run_command
from rebar.errors import RebarError
from rebar.storage.atomic_write import atomic_write, sync_folder, write_error
from rebar.storage.file_lock import file_lock

DEFAULT_WORKERS = 16
"""Reads under way at once."""
_DONE = struct.Struct("<QI")  # a block's number and checksum


def stage(source: Path, target: Path, *, num_workers: int = DEFAULT_WORKERS, progress: bool = True) -> str:
    """Copy a .beton, its sidecar and its report; returns in a word what was done.

    ``target`` is the new file. Raises RebarError for a source that is missing or not as its sidecar says, too little
    space, a disk that fails, and a copy that is not the same; what was copied is kept, and the same call goes on.
    """
    sidecar = read_sidecar(source)
    checksums = sidecar.checksums if sidecar else None
    status = _status(source)
    blocks = divide(status.st_size, checksums)
    if checksums and target.exists() and _is_same(target, status.st_size, checksums, blocks, num_workers):
        _copy_small(source, target)
        return "there already, and whole"
    identity = {"bytes": status.st_size, "modified": status.st_mtime_ns, "checksums": checksums and checksums.to_json()}
    partial, journal_path = (target.with_name(f".{target.name}.{what}") for what in ("staging", "staged"))
    try:
        with (
            file_lock(journal_path, f"{target}: another process is copying it; wait until it has finished") as journal,
            open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file,
            source.open("rb", buffering=0) as original,
        ):
            done = _done_before(journal, identity, file, blocks)
            _check_space(target, sum(block.end - block.start for block in blocks if block.number not in done))
            with _bar(status.st_size, f"copying {source.name}", enabled=progress) as bar:
                bar.update(sum(block.end - block.start for block in blocks if block.number in done))
                _copy(source, original, file, journal, blocks, done, num_workers, bar.update)
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what is read back comes from the disk
            with _bar(status.st_size, f"comparing {source.name}", enabled=progress) as bar:
                _compare(target, file, journal_path, blocks, done, num_workers, bar.update)
            if checksums and not checksums.tables_match(np.memmap(partial, np.uint8, mode="r")):
                journal_path.unlink()
                raise BetonError(f"{source}: its tables do not match the sidecar's checksum; copy it from elsewhere")
            if _status(source).st_mtime_ns != status.st_mtime_ns:
                raise RebarError(f"{source}: was changed while it was copied; run the same command again")
            _copy_small(source, target)
            os.replace(partial, target)
            journal_path.unlink()
            sync_folder(target.parent)
    except OSError as error:
        raise RebarError(f"{write_error(target, error)}. What was copied is kept: the same command goes on") from None
    return "copied"


def _status(source: Path) -> os.stat_result:
    try:
        return source.stat()
    except OSError as error:
        raise BetonError(f"{source}: cannot be read: {error.strerror}") from None


def _done_before(journal: IO[bytes], identity: object, file: IO[bytes], blocks: list[Block]) -> dict[int, int]:
    """The blocks that an earlier copy of the same source wrote, with their checksums; they are compared at the end."""
    done: dict[int, int] = {}
    records, end = read_records(journal), 0
    first = next(records, None)
    if first is not None and json.loads(first[0]) == identity:
        end = first[1]
        for record, behind in records:
            number, checksum = _DONE.unpack(record)
            done[number], end = checksum, behind
    journal.truncate(end)
    journal.seek(end)
    if not end:
        append_record(journal, json.dumps(identity).encode())
    os.truncate(file.fileno(), blocks[-1].end)
    return done


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise RebarError(
            f"{target}: {needed / 1e6:,.0f} MB are needed but only {free / 1e6:,.0f} MB are free; free some space"
        )


def _copy(
    source: Path,
    original: IO[bytes],
    file: IO[bytes],
    journal: IO[bytes],
    blocks: list[Block],
    done: dict[int, int],
    num_workers: int,
    on_bytes: Callable[[int], object],
) -> None:
    """Copy the blocks that are not ``done``, and note each as it is."""
    lock = threading.Lock()

    def copy(block: Block) -> int:
        content = read_block(original, source, block)
        checksum = zlib.crc32(content)
        if block.expected not in (None, checksum):
            raise BetonError(
                f"{source}: the page from byte {block.start:,} on does not match the sidecar's checksum, so it is "
                "damaged; copy it from where it was written"
            )
        write_at(file, content, block.start)
        with lock:
            append_record(journal, _DONE.pack(block.number, checksum))
            done[block.number] = checksum
        return block.end - block.start

    in_threads(copy, [block for block in blocks if block.number not in done], num_workers, on_bytes)


def _compare(
    target: Path,
    file: IO[bytes],
    journal_path: Path,
    blocks: list[Block],
    done: dict[int, int],
    num_workers: int,
    on_bytes: Callable[[int], object],
) -> None:
    """Read back what was written."""

    def compare(block: Block) -> int:
        if zlib.crc32(read_block(file, target, block)) != done[block.number]:
            journal_path.unlink(missing_ok=True)  # nothing in it can be relied on
            raise RebarError(
                f"{target}: what was written at byte {block.start:,} is not what the disk gives back; run the same "
                "command again, and look after the disk if that does not help"
            )
        return block.end - block.start

    in_threads(compare, blocks, num_workers, on_bytes)


def _is_same(path: Path, size: int, checksums: Checksums, blocks: list[Block], num_workers: int) -> bool:
    """Whether a file has these checksums."""
    if path.stat().st_size != size or not checksums.tables_match(np.memmap(path, np.uint8, mode="r")):
        return False
    with path.open("rb", buffering=0) as file:
        wrong: list[int] = []

        def compare(block: Block) -> int:
            if block.expected not in (None, zlib.crc32(read_block(file, path, block))):
                wrong.append(block.number)
            return 0

        in_threads(compare, blocks, num_workers, lambda _: None)
    return not wrong


def _copy_small(source: Path, target: Path) -> None:
    """The files beside a .beton."""
    for beside in (report_path, sidecar_path):
        if beside(source).exists():
            with atomic_write(beside(target)) as (file,):
                file.write(beside(source).read_bytes())


def _bar(total: int, what: str, *, enabled: bool) -> "tqdm[None]":
    return tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=not enabled, dynamic_ncols=True)


def find_betons(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Which files to copy where: one file, or all of a folder. Raises RebarError where there is none."""
    if source.is_dir():
        found = sorted(source.glob("*.beton"))
        if not found:
            raise RebarError(f"{source}: there is no .beton file in it")
        pairs = [(path, target / path.name) for path in found]
    else:
        pairs = [(source, target if target.suffix == ".beton" else target / source.name)]
    for path, copy in pairs:
        if copy.exists() and path.exists() and os.path.samefile(path, copy):
            raise RebarError(f"{path}: is source and target at once; give another folder to copy to")
    return pairs


def main(argv: Sequence[str]) -> None:
    """Copy what the command line names."""
    parser = argparse.ArgumentParser(prog="stage_dataset.sh", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="a .beton file, or a folder of them")
    parser.add_argument("target", type=Path, help="the folder to copy to, which is made where it is missing")
    parser.add_argument("--num-workers", type=int, default=DEFAULT_WORKERS, help="reads at once (default %(default)s)")
    given = parser.parse_args(argv)
    for source, target in find_betons(given.source, given.target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(target, error) from None
        done = stage(source, target, num_workers=max(1, given.num_workers))
        print(f"{target}: {done}, {target.stat().st_size / 1e9:,.3f} GB", flush=True)


if __name__ == "__main__":
    run_command(main)
