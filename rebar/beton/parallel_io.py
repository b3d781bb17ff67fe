"""A file in blocks: read, written and compared by many threads at once."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rebar.beton.format import BetonError
from rebar.beton.sidecar import Checksums

BLOCK_BYTES = 8 << 20
"""Where no sidecar says how large a page is."""


@dataclass(frozen=True)
class Block:
    """A part of a file, and the checksum it must have where one is known."""

    number: int
    start: int
    end: int
    expected: int | None


def divide(size: int, checksums: Checksums | None) -> list[Block]:
    """The blocks of a file of ``size`` bytes: its pages, and the tables before and behind them."""
    if checksums is None:
        edges = [*range(0, size, BLOCK_BYTES), size]
        return [Block(number, edges[number], edges[number + 1], None) for number in range(len(edges) - 1)]
    first, step = checksums.first_page * checksums.page_size, checksums.page_size
    blocks = [Block(0, 0, first, None)]
    for page, expected in enumerate(checksums.pages):
        blocks.append(Block(page + 1, first + page * step, first + (page + 1) * step, expected))
    return [*blocks, Block(len(blocks), blocks[-1].end, size, None)]


def read_block(file: IO[bytes], path: Path, block: Block) -> bytes:
    parts, at = [], block.start
    while at < block.end:
        part = os.pread(file.fileno(), block.end - at, at)
        if not part:
            raise BetonError(f"{path}: ends at byte {at:,}, though it has {block.end:,} or more; copy it again")
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def write_at(file: IO[bytes], content: bytes, at: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(file.fileno(), view, at)
        view, at = view[written:], at + written


def in_threads(
    job: Callable[[Block], int], blocks: list[Block], num_workers: int, on_bytes: Callable[[int], object]
) -> None:
    """Do ``job`` for all blocks, told of its bytes as they are done; the first error ends it."""
    with ThreadPoolExecutor(num_workers) as threads:
        futures = [threads.submit(job, block) for block in blocks]
        try:
            for future in as_completed(futures):
                on_bytes(future.result())
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
