"""A file of records that is only ever appended to, and of which every whole record can be read again after a kill.

A .beton file while it is being written: beside its target, with a journal of the pages that are whole.

``.train.beton.partial`` is the file to be, ``.train.beton.journal`` says what it is made of (the *job*) and, page by
page, its tables' rows, its checksum, and what became of the source's images. After a kill at any moment the pages
that the journal tells of, and whose checksum is right, are kept, and the writing goes on behind them.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from rebar.beton.format import ALLOCATION
from rebar.beton.pages import SAMPLE, Page, PageWriter
from rebar.beton.sidecar import checksum
from rebar.errors import RebarError
from rebar.storage.file_lock import file_lock

_HEAD = struct.Struct("<II")  # length and CRC-32 of the record that follows
_LONGEST = 1 << 30


def append_record(file: IO[bytes], record: bytes) -> None:
    """Add a record at the file's position, in the hands of the operating system on return."""
    file.write(_HEAD.pack(len(record), zlib.crc32(record)) + record)
    file.flush()


def read_records(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Each whole record from the file's start on, with the place behind it; ends at the first that is torn."""
    end, size = 0, os.fstat(file.fileno()).st_size
    file.seek(0)
    while True:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return
        length, checksum = _HEAD.unpack(head)
        end += _HEAD.size + length
        if length > _LONGEST or end > size:
            return
        record = file.read(length)
        if len(record) < length or zlib.crc32(record) != checksum:
            return
        yield record, end


_PAGE_HEAD = struct.Struct("<III")  # samples, position, checksum


class OtherJobError(RebarError):
    """What is there to go on with was begun with another source, policy, order or software."""


@dataclass(frozen=True)
class Progress:
    """What the journal says of one page."""

    page: Page
    position: int
    """Where in the order the writing goes on behind it."""
    note: Any
    """Whatever the writer noted of the images up to there."""


class Partial:
    """The files of an unfinished writing; ``kept`` is what earlier ones left."""

    def __init__(self, path: Path, pages: PageWriter, journal: IO[bytes], kept: list[Progress]) -> None:
        self.path = path
        self.pages = pages
        self.kept = kept
        self._journal = journal

    def record(self, page: Page, position: int, note: Any) -> None:
        """Note that a page was written whole; ``note`` is anything that JSON holds."""
        head = _PAGE_HEAD.pack(len(page.samples), position, page.checksum)
        rows = page.samples.tobytes() + page.allocations.tobytes()
        append_record(self._journal, head + rows + json.dumps(note).encode())

    def finish(self) -> None:
        """Put the file's content on disk, and give it its name."""
        os.fsync(self.pages.file.fileno())
        os.replace(partial_path(self.path), self.path)
        journal_path(self.path).unlink()


def partial_path(path: Path) -> Path:
    """Where a file lies while it is being written."""
    return path.with_name(f".{path.name}.partial")


def journal_path(path: Path) -> Path:
    """Where its journal lies meanwhile."""
    return path.with_name(f".{path.name}.journal")


@contextmanager
def open_partial(
    path: Path, job: Mapping[str, Any], capacity: int, page_size: int, *, restart: bool
) -> Iterator[Partial]:
    """Begin to write ``path``, or go on where an earlier writing of the same job was broken off.

    ``job`` is what the bytes depend on, as JSON holds it; ``capacity`` and ``page_size`` are the PageWriter's, which
    has taken over what is kept. Where the block fails before the first page is whole, nothing is left behind. Raises
    RebarError where another process is writing this file, or where what is left is of another job and ``restart``
    does not allow to throw it away.
    """
    refusal = f"{path}: another process is writing this file; wait until it has finished, or end it"
    with (
        file_lock(journal_path(path), refusal) as journal,
        open(os.open(partial_path(path), os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file,
    ):
        pages = PageWriter(file, capacity, page_size)
        kept, end = ([], 0) if restart else _kept(path, journal, job, pages)
        try:
            journal.truncate(end)
            journal.seek(end)
            if not end:
                append_record(journal, json.dumps(job).encode())
            for progress in kept:
                pages.take_over(progress.page)
            file.truncate(pages.page_start)
            yield Partial(path, pages, journal, kept)
        finally:
            if not pages.page_checksums:
                partial_path(path).unlink(missing_ok=True)
                journal_path(path).unlink(missing_ok=True)


def _kept(path: Path, journal: IO[bytes], job: Mapping[str, Any], pages: PageWriter) -> tuple[list[Progress], int]:
    """What can be gone on from, and where in the journal that ends; 0 where there is no job in it."""
    records = read_records(journal)
    first = next(records, None)
    if first is None or not os.fstat(pages.file.fileno()).st_size:
        return [], 0
    _compare(path, json.loads(first[0]), json.loads(json.dumps(job)))
    kept, end = [], first[1]
    pages.file.seek(pages.page_start)
    for record, behind in records:
        progress = _parse(record)
        if checksum(np.frombuffer(pages.file.read(pages.page_size), np.uint8)) != progress.page.checksum:
            break
        kept.append(progress)
        end = behind
    return kept, end


def _parse(record: bytes) -> Progress:
    count, position, page_checksum = _PAGE_HEAD.unpack_from(record)
    samples = np.frombuffer(record, SAMPLE, count, _PAGE_HEAD.size)
    allocations = np.frombuffer(record, ALLOCATION, count, _PAGE_HEAD.size + samples.nbytes)
    note = json.loads(record[_PAGE_HEAD.size + samples.nbytes + allocations.nbytes :])
    return Progress(Page(page_checksum, samples, allocations), position, note)


def _compare(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if differing:
        raise OtherJobError(
            f"{partial_path(path)}: was begun with another {', '.join(differing)}, so it cannot be gone on with; give "
            "the command it was begun with, or --restart to throw it away"
        )
