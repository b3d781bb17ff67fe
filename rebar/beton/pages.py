"""Laying encoded pictures into the pages of a .beton file."""

import zlib
from typing import IO

import numpy as np

from rebar.beton.checksums import Checksums
from rebar.beton.format import (
    ALLOCATION,
    FIELD_DESCRIPTOR,
    HEADER,
    TYPE_IMAGE,
    TYPE_INT,
    VERSION,
    field_descriptor,
    round_up,
    sample_dtype,
)
from rebar.beton.images import EncodedPicture

FIELDS = (("image", TYPE_IMAGE), ("label", TYPE_INT))
SAMPLE = sample_dtype([type_id for _, type_id in FIELDS])


class PageWriter:
    """Lays pictures into pages, one behind the other, and keeps the tables about them.

    ``file`` is a file open for binary writing, ``page_size`` is in bytes. A page is written at once, when it is full.
    """

    def __init__(self, file: IO[bytes], num_samples: int, page_size: int) -> None:
        self.samples = np.zeros(num_samples, SAMPLE)
        self.num_samples = 0
        self.picture_bytes = 0
        self.page_size = page_size
        tables = HEADER.itemsize + len(FIELDS) * FIELD_DESCRIPTOR.itemsize + self.samples.nbytes
        self.first_page = round_up(tables, page_size) // page_size
        self.page_checksums: list[int] = []
        self._allocations = np.zeros(num_samples, ALLOCATION)
        self._file = file
        self._page = np.zeros(page_size, np.uint8)
        self._used = 0

    def append(self, label: int, picture: EncodedPicture) -> None:
        """Add the next sample, whose picture must not be larger than a page."""
        size = picture.data.nbytes
        if self._used + size > self.page_size:
            self._write_page()
        position = self._page_start() + self._used
        self._page[self._used : self._used + size] = picture.data
        self.samples[self.num_samples] = ((picture.mode, picture.width, picture.height, position), label)
        self._allocations[self.num_samples] = (self.num_samples, position, size)
        self._used += size
        self.num_samples += 1
        self.picture_bytes += size

    def finish(self) -> tuple[int, Checksums]:
        """Write the tables, the header last; returns the size of the file in bytes, and its checksums."""
        assert self.num_samples == len(self.samples)
        if self._used:
            self._write_page()  # FFCV reads whole pages, the last one too
        end = self._page_start()
        header = np.zeros(1, HEADER)
        header[0] = (VERSION, len(FIELDS), self.page_size, self.num_samples, end)
        descriptors = [field_descriptor(name, type_id).tobytes() for name, type_id in FIELDS]
        front = b"".join([header.tobytes(), *descriptors, self.samples.tobytes()])
        front += bytes(self.first_page * self.page_size - len(front))
        self._file.seek(end)
        self._file.write(self._allocations.data)
        self._file.seek(HEADER.itemsize)
        self._file.write(front[HEADER.itemsize :])
        self._file.seek(0)
        self._file.write(front[: HEADER.itemsize])
        tables = zlib.crc32(self._allocations.data, zlib.crc32(front))
        checksums = Checksums(self.page_size, self.first_page, tables, tuple(self.page_checksums))
        return end + self._allocations.nbytes, checksums

    def _page_start(self) -> int:
        return (self.first_page + len(self.page_checksums)) * self.page_size

    def _write_page(self) -> None:
        self._page[self._used :] = 0
        self._file.seek(self._page_start())
        self._file.write(self._page.data)
        self.page_checksums.append(zlib.crc32(self._page.data))
        self._used = 0
