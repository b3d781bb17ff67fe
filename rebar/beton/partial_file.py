"""Unfinished files, with a journal of their complete parts from which an interrupted run resumes.

``.train.beton.partial`` becomes the file. ``.train.beton.journal`` identifies the job and records every complete
page: its table rows, its checksum, and the outcome of each source image. After a kill, the recorded pages whose
checksums match are kept, and writing resumes after them.
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
from rebar.beton.sidecar import crc32
from rebar.errors import RebarError
from rebar.storage.files import file_lock, write_at

_RECORD_HEADER = struct.Struct("<II")  # length and CRC-32 of the record that follows
_MAX_RECORD = 1 << 30
_PAGE_HEADER = struct.Struct("<III")  # samples, position, checksum


def open_or_create(path: Path) -> IO[bytes]:
    """Open a file for reading and writing, unbuffered and without truncating it."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)


class Journal:
    """A journal of a job. Its first record is a JSON header that identifies the job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_or_create(path)

    def read(self) -> tuple[Any, int, Iterator[tuple[bytes, int]]]:
        """Return the header, the offset of its end, and an iterator over the other records and their ends.

        Without a header, returns None and 0 for it. Iteration stops at the first damaged record.
        """
        records = self._read_records()
        header, end = next(records, (b"null", 0))
        return json.loads(header), end, records

    def resume(self, header: Any, end: int) -> None:
        """Truncate the journal at the offset ``end`` and append there. With 0, write ``header`` first."""
        self._file.truncate(end)
        self._file.seek(end)
        if not end:
            self.append(json.dumps(header).encode())

    def append(self, record: bytes) -> None:
        """Append a record. On return, the record is in the page cache, not necessarily on disk."""
        content = _RECORD_HEADER.pack(len(record), zlib.crc32(record)) + record
        write_at(self._file, content, self._file.seek(0, os.SEEK_END))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read_records(self) -> Iterator[tuple[bytes, int]]:
        end, size = 0, os.fstat(self._file.fileno()).st_size
        self._file.seek(0)
        while True:
            head = self._file.read(_RECORD_HEADER.size)
            if len(head) < _RECORD_HEADER.size:
                return
            length, checksum = _RECORD_HEADER.unpack(head)
            end += _RECORD_HEADER.size + length
            if length > _MAX_RECORD or end > size:
                return
            record = self._file.read(length)
            if len(record) < length or zlib.crc32(record) != checksum:
                return
            yield record, end


class JobMismatchError(RebarError):
    """The unfinished file belongs to another source, policy, order or software version."""


@dataclass(frozen=True)
class PageRecord:
    """The journal's record of one page."""

    page: Page
    position: int
    """The position in the order at which writing resumes after this page."""
    note: Any
    """Additional JSON data of the writer."""


class PartialFile:
    """An unfinished .beton file; ``recovered`` are the pages kept from an interrupted run."""

    def __init__(self, path: Path, pages: PageWriter, journal: Journal, recovered: list[PageRecord]) -> None:
        self.path = path
        self.pages = pages
        self.recovered = recovered
        self._journal = journal

    def record(self, page: Page, position: int, note: Any) -> None:
        """Record a complete page in the journal. ``note`` is a JSON value."""
        head = _PAGE_HEADER.pack(len(page.samples), position, page.checksum)
        rows = page.samples.tobytes() + page.allocations.tobytes()
        self._journal.append(head + rows + json.dumps(note).encode())

    def finish(self) -> None:
        """Flush the file to disk and rename it to its final name."""
        os.fsync(self.pages.file.fileno())
        os.replace(partial_path(self.path), self.path)
        journal_path(self.path).unlink()


def partial_path(path: Path) -> Path:
    """Return the path of a file during writing."""
    return path.with_name(f".{path.name}.partial")


def journal_path(path: Path) -> Path:
    """Return the path of the journal during writing."""
    return path.with_name(f".{path.name}.journal")


@contextmanager
def open_partial(
    path: Path, job: Mapping[str, Any], capacity: int, page_size: int, *, restart: bool
) -> Iterator[PartialFile]:
    """Start writing ``path``, or resume an interrupted run of the same job.

    ``job`` is a JSON object with all inputs that determine the bytes of the file. ``capacity`` and ``page_size`` are
    passed to the PageWriter, which contains the recovered pages. If the block fails before the first page is complete,
    the files are removed.

    Raises RebarError if another process is writing this file, and JobMismatchError if the unfinished file belongs to
    another job, unless ``restart`` discards it.
    """
    message = f"{path}: another process is writing this file. Wait until it has finished, or stop it."
    with (
        file_lock(path.with_name(f".{path.name}.lock"), message),
        Journal(journal_path(path)) as journal,
        open_or_create(partial_path(path)) as file,
    ):
        pages = PageWriter(file, capacity, page_size)
        recovered, end = ([], 0) if restart else _recover(path, journal, job, file, pages)
        try:
            journal.resume(job, end)
            for record in recovered:
                pages.restore_page(record.page)
            file.truncate(pages.page_start)
            yield PartialFile(path, pages, journal, recovered)
        finally:
            if not pages.page_checksums:
                partial_path(path).unlink(missing_ok=True)
                journal_path(path).unlink(missing_ok=True)


def _recover(
    path: Path, journal: Journal, job: Mapping[str, Any], file: IO[bytes], pages: PageWriter
) -> tuple[list[PageRecord], int]:
    """Return the pages that can be kept, and the end of their records in the journal; 0 without a job."""
    header, end, records = journal.read()
    if header is None or not os.fstat(file.fileno()).st_size:
        return [], 0
    _compare_jobs(path, header, json.loads(json.dumps(job)))
    recovered = []
    file.seek(pages.page_start)
    for content, record_end in records:
        record = _parse_record(content)
        if crc32(np.frombuffer(file.read(pages.page_size), np.uint8)) != record.page.checksum:
            break
        recovered.append(record)
        end = record_end
    return recovered, end


def _parse_record(content: bytes) -> PageRecord:
    count, position, page_checksum = _PAGE_HEADER.unpack_from(content)
    samples = np.frombuffer(content, SAMPLE, count, _PAGE_HEADER.size)
    allocations = np.frombuffer(content, ALLOCATION, count, _PAGE_HEADER.size + samples.nbytes)
    note = json.loads(content[_PAGE_HEADER.size + samples.nbytes + allocations.nbytes :])
    return PageRecord(Page(page_checksum, samples, allocations), position, note)


def _compare_jobs(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    differing = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    if differing:
        raise JobMismatchError(
            f"{partial_path(path)} was started with a different {', '.join(differing)}. Run the original command to "
            "resume it, or add --restart to discard it.",
            code="write-job-mismatch",
        )
