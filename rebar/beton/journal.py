"""A file of records that is only ever appended to, and of which every whole record can be read again after a kill."""

import os
import struct
import zlib
from collections.abc import Iterator
from typing import IO

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
