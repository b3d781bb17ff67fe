"""Append-only journals: files of checksummed records, of which every complete record survives a kill."""

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_RECORD_HEAD = struct.Struct("<II")  # length and CRC-32 of the record that follows
_MAX_RECORD = 1 << 30


def open_or_create(path: Path) -> IO[bytes]:
    """Open a file for reading and writing, unbuffered and without truncating it."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)


class Journal:
    """A journal of work on a file. Its first record is a JSON header that identifies the work."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_or_create(path)

    def read(self) -> tuple[Any, int, Iterator[tuple[bytes, int]]]:
        """Return the header, the offset of its end, and an iterator over the other records and their ends.

        The header is None and its end 0 if there is none. The records end before the first damaged one.
        """
        records = self._read_records()
        header, end = next(records, (b"null", 0))
        return json.loads(header), end, records

    def resume(self, header: Any, end: int) -> None:
        """Discard everything after the offset ``end``, and append there; 0 starts again with ``header``."""
        self._file.truncate(end)
        self._file.seek(end)
        if not end:
            self.append(json.dumps(header).encode())

    def append(self, record: bytes) -> None:
        """Append a record. It is in the operating system's cache on return."""
        self._file.write(_RECORD_HEAD.pack(len(record), zlib.crc32(record)) + record)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read_records(self) -> Iterator[tuple[bytes, int]]:
        end, size = 0, os.fstat(self._file.fileno()).st_size
        self._file.seek(0)
        while True:
            head = self._file.read(_RECORD_HEAD.size)
            if len(head) < _RECORD_HEAD.size:
                return
            length, checksum = _RECORD_HEAD.unpack(head)
            end += _RECORD_HEAD.size + length
            if length > _MAX_RECORD or end > size:
                return
            record = self._file.read(length)
            if len(record) < length or zlib.crc32(record) != checksum:
                return
            yield record, end
