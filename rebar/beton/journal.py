"""Append-only journals of checksummed records. Records that were written completely survive a kill of the process."""

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_RECORD_HEADER = struct.Struct("<II")  # length and CRC-32 of the record that follows
_MAX_RECORD = 1 << 30


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
        self._file.write(_RECORD_HEADER.pack(len(record), zlib.crc32(record)) + record)

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
