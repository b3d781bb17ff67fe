"""Copy .beton files to a fast disk: in parallel, verified, and resumable.

    python -m rebar.beton.staging /mnt/ebs/imagenet /mnt/nvme/imagenet
    python -m rebar.beton.staging /mnt/ebs/imagenet/train.beton /mnt/nvme/imagenet

Volumes restored from snapshots and network disks are much faster with many concurrent reads. Blocks are compared with
the sidecar's checksums when they are read; the copy is then read back from disk and verified.
"""

import os
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from rebar.beton.format import BetonError
from rebar.beton.sidecar import Checksums, beton_changed, read_sidecar, sidecar_path
from rebar.beton.write_report import report_path
from rebar.cli import CommandParser, run_command
from rebar.errors import RebarError
from rebar.storage.block_copies import copy_blocks, run_in_threads
from rebar.storage.files import atomic_write, check_output, write_at, write_error

DEFAULT_WORKERS = 16
"""Concurrent reads."""
BLOCK_BYTES = 8 << 20
"""Block size for files without a sidecar; otherwise blocks are pages."""


@dataclass(frozen=True)
class Block:
    """A byte range of a file, with the checksum it must have, if known."""

    number: int
    start: int
    end: int
    expected: int | None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    def read(self, file: IO[bytes], path: Path) -> bytes:
        """Read the block. Raises BetonError if the file ends before it."""
        parts, position = [], self.start
        while position < self.end:
            part = os.pread(file.fileno(), self.end - position, position)
            if not part:
                raise BetonError(
                    f"{path}: ends at byte {position:,}, but at least {self.end:,} are expected. Copy it again.",
                    code="beton-truncated",
                )
            parts.append(part)
            position += len(part)
        return b"".join(parts)


def split_blocks(size: int, checksums: Checksums | None) -> list[Block]:
    """Split a file of ``size`` bytes into blocks: its pages, and the tables before and after them."""
    if checksums is None:
        edges = [*range(0, size, BLOCK_BYTES), size]
        return [Block(number, edges[number], edges[number + 1], None) for number in range(len(edges) - 1)]
    first, step = checksums.first_page * checksums.page_size, checksums.page_size
    blocks = [Block(0, 0, first, None)]
    for page, expected in enumerate(checksums.pages):
        blocks.append(Block(page + 1, first + page * step, first + (page + 1) * step, expected))
    return [*blocks, Block(len(blocks), blocks[-1].end, size, None)]


def stage(
    source: Path,
    target: Path,
    *,
    num_workers: int = DEFAULT_WORKERS,
    overwrite: bool = False,
    progress: bool = True,
) -> str:
    """Copy a .beton file to the path ``target``, with its sidecar and report; return "copied" or "already complete".

    Raises RebarError if the source is missing or does not match its sidecar, if the target is another file and not
    ``overwrite``, if space is insufficient, or if a disk fails. Blocks copied before an error are kept, and the same
    call resumes.
    """
    sidecar = read_sidecar(source)
    checksums = sidecar.checksums if sidecar else None
    status = _status(source)
    blocks = split_blocks(status.st_size, checksums)
    if target.exists() and _is_complete(source, target, checksums, blocks, num_workers):
        _copy_companions(source, target, overwrite=False)
        return "already complete"
    if not _have_same_sidecar(source, target):  # otherwise a damaged or incomplete copy
        for path in (target, sidecar_path(target)):
            if path.exists():
                check_output(path, overwrite=overwrite)
    try:
        _copy(source, target, status, checksums, blocks, num_workers, overwrite=overwrite, progress=progress)
    except OSError as error:
        failure = write_error(target, error)
        raise RebarError(
            f"{failure} The blocks copied so far are kept: the same command resumes.", code=failure.code
        ) from None
    return "copied"


def _copy(
    source: Path,
    target: Path,
    status: os.stat_result,
    checksums: Checksums | None,
    blocks: list[Block],
    num_workers: int,
    *,
    overwrite: bool,
    progress: bool,
) -> None:
    version = {"bytes": status.st_size, "modified": status.st_mtime_ns, "checksums": checksums and checksums.to_json()}
    sizes = {block.number: block.size for block in blocks}

    def copy(file: IO[bytes], number: int, _: object) -> int:
        block = blocks[number]
        content = block.read(original, source)
        checksum = zlib.crc32(content)
        if block.expected not in (None, checksum):
            raise beton_changed(source, f"the page at byte {block.start:,} does not have its checksum")
        write_at(file, content, block.start)
        return checksum

    def verify(partial: Path, copied: Mapping[int, int]) -> None:
        def compare(number: int, _: object) -> None:
            block = blocks[number]
            if zlib.crc32(block.read(file, target)) != copied[number]:
                raise RebarError(
                    f"{target}: the disk does not return what was written at byte {block.start:,}. Run the same "
                    "command again; if that fails too, replace the disk.",
                    code="staging-verify-failed",
                )

        with partial.open("rb", buffering=0) as file:
            deque(run_in_threads(compare, sizes, num_workers, f"comparing {source.name}", progress=progress), 0)
        if checksums and not checksums.tables_match(np.memmap(partial, np.uint8, mode="r")):
            raise beton_changed(source, "its tables do not have their checksum")
        if _status(source).st_mtime_ns != status.st_mtime_ns:
            raise RebarError(
                f"{source} was modified during the copy. Run the same command again.", code="staging-source-modified"
            )
        _copy_companions(source, target, overwrite=overwrite)

    with source.open("rb", buffering=0) as original:
        copy_blocks(
            target,
            version,
            list(sizes.values()),
            copy,
            verify,
            threads=num_workers,
            description=f"copying {source.name}",
            progress=progress,
        )


def _status(source: Path) -> os.stat_result:
    try:
        return source.stat()
    except OSError as error:
        raise BetonError(
            f"{source} cannot be read: {error.strerror}. Check the path.", code="beton-not-found"
        ) from None


def _is_complete(
    source: Path, target: Path, checksums: Checksums | None, blocks: list[Block], num_workers: int
) -> bool:
    """Return whether a file has the checksums; without checksums, whether it has the content of the source."""
    if not target.is_file() or target.stat().st_size != blocks[-1].end:
        return False
    if checksums and not checksums.tables_match(np.memmap(target, np.uint8, mode="r")):
        return False
    with source.open("rb", buffering=0) as original, target.open("rb", buffering=0) as file:

        def is_intact(number: int, _: object) -> bool:
            block = blocks[number]
            if checksums:
                return block.expected in (None, zlib.crc32(block.read(file, target)))
            return block.read(file, target) == block.read(original, source)

        compared = run_in_threads(
            is_intact, {block.number: block.size for block in blocks}, num_workers, "", progress=False
        )
        return all(intact for _, intact in compared)


def _have_same_sidecar(source: Path, target: Path) -> bool:
    sidecars = [sidecar_path(path) for path in (source, target)]
    return all(path.is_file() for path in sidecars) and sidecars[0].read_bytes() == sidecars[1].read_bytes()


def _copy_companions(source: Path, target: Path, *, overwrite: bool) -> None:
    """Copy the sidecar and the report, if they exist; otherwise ``overwrite`` removes those of the target."""
    for companion in (report_path, sidecar_path):
        if companion(source).exists():
            with atomic_write(companion(target)) as (file,):
                file.write(companion(source).read_bytes())
        elif overwrite:
            companion(target).unlink(missing_ok=True)  # of the replaced file


def list_copies(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Return (source, target) for one file or all files of a folder. Raises RebarError if there are none."""
    if source.is_dir():
        found = sorted(source.glob("*.beton"))
        if not found:
            raise RebarError(f"{source}: contains no .beton file. Check the path.", code="beton-not-found")
        pairs = [(path, target / path.name) for path in found]
    else:
        pairs = [(source, target if target.suffix == ".beton" else target / source.name)]
    for path, copy in pairs:
        if copy.exists() and path.exists() and os.path.samefile(path, copy):
            raise RebarError(f"{path} is both source and target. Use another target folder.", code="staging-same-file")
    return pairs


def main(argv: Sequence[str]) -> None:
    """Copy the files given on the command line."""
    parser = CommandParser(prog="stage_dataset.sh", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="a .beton file, or a folder of them")
    parser.add_argument("target", type=Path, help="target folder; created if missing")
    parser.add_argument("--num-workers", type=int, default=DEFAULT_WORKERS, help="concurrent reads (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files with other content")
    options = parser.parse_args(argv)
    for source, target in list_copies(options.source, options.target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(target, error) from None
        result = stage(source, target, num_workers=max(1, options.num_workers), overwrite=options.overwrite)
        print(f"{target}: {result}, {target.stat().st_size / 1e9:,.3f} GB", flush=True)


if __name__ == "__main__":
    run_command(main)
