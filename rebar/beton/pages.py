"""Laying encoded images into the pages of a .beton file."""

import zlib
from dataclasses import dataclass
from typing import IO

import numpy as np

from rebar.beton.encode import EncodedImage
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
from rebar.beton.sidecar import Checksums

FIELDS = (("image", TYPE_IMAGE), ("label", TYPE_INT))
SAMPLE = sample_dtype([type_id for _, type_id in FIELDS])


@dataclass(frozen=True)
class Page:
    """What the tables say of one page, and its checksum."""

    checksum: int
    samples: np.ndarray
    """SAMPLE records"""
    allocations: np.ndarray
    """ALLOCATION records"""


def tables_before_pages(capacity: int, page_size: int) -> int:
    """Bytes from the start of a file with room for ``capacity`` samples to its first page."""
    tables = HEADER.itemsize + len(FIELDS) * FIELD_DESCRIPTOR.itemsize + capacity * SAMPLE.itemsize
    return round_up(tables, page_size)


class PageWriter:
    """Lays images into pages, one behind the other, and keeps the tables about them.

    ``file`` is a file open for binary writing, ``page_size`` is in bytes; there is room for ``capacity`` samples. A
    page is written at once, when its owner finds it full.
    """

    def __init__(self, file: IO[bytes], capacity: int, page_size: int) -> None:
        self.num_samples = 0
        self.image_bytes = 0
        self.page_size = page_size
        self.first_page = tables_before_pages(capacity, page_size) // page_size
        self.page_checksums: list[int] = []
        self._samples = np.zeros(capacity, SAMPLE)
        self._allocations = np.zeros(capacity, ALLOCATION)
        self.file = file
        self._page = np.zeros(page_size, np.uint8)
        self._used = 0
        self._first_sample = 0  # of the page in work

    @property
    def samples(self) -> np.ndarray:
        """The records of the samples so far."""
        return self._samples[: self.num_samples]

    @property
    def page_start(self) -> int:
        """Where in the file the page in work lies (bytes)."""
        return (self.first_page + len(self.page_checksums)) * self.page_size

    def fits(self, size: int) -> bool:
        """Whether an image of ``size`` bytes fits into the page in work."""
        return self._used + size <= self.page_size

    def append(self, label: int, image: EncodedImage) -> None:
        """Add the next sample, whose image must fit into the page in work."""
        size, position = image.data.nbytes, self.page_start + self._used
        self._page[self._used : self._used + size] = image.data
        self._samples[self.num_samples] = ((image.mode, image.width, image.height, position), label)
        self._allocations[self.num_samples] = (self.num_samples, position, size)
        self._used += size
        self.num_samples += 1
        self.image_bytes += size

    def write_page(self) -> Page:
        """Write the page in work, and begin the next."""
        self._page[self._used :] = 0  # FFCV reads whole pages, the last one too
        self.file.seek(self.page_start)
        self.file.write(self._page.data)
        self.file.flush()
        rows = slice(self._first_sample, self.num_samples)
        page = Page(zlib.crc32(self._page.data), self._samples[rows], self._allocations[rows])
        self._begin_next(page.checksum)
        return page

    def take_over(self, page: Page) -> None:
        """Go on behind a page that an earlier writing left in the file."""
        rows = slice(self.num_samples, self.num_samples + len(page.samples))
        self._samples[rows], self._allocations[rows] = page.samples, page.allocations
        self.num_samples += len(page.samples)
        self.image_bytes += int(page.allocations["size"].sum())
        self._begin_next(page.checksum)

    def _begin_next(self, checksum: int) -> None:
        self.page_checksums.append(checksum)
        self._used, self._first_sample = 0, self.num_samples

    def write_tables(self) -> tuple[int, Checksums]:
        """Write the tables, the header last; returns the size of the file in bytes, and its checksums."""
        assert self._used == 0
        end, allocations = self.page_start, self._allocations[: self.num_samples]
        header = np.zeros(1, HEADER)
        header[0] = (VERSION, len(FIELDS), self.page_size, self.num_samples, end)
        descriptors = [field_descriptor(name, type_id).tobytes() for name, type_id in FIELDS]
        front = b"".join([header.tobytes(), *descriptors, self.samples.tobytes()])
        front += bytes(self.first_page * self.page_size - len(front))
        self.file.seek(end)
        self.file.write(allocations.data)
        self.file.seek(HEADER.itemsize)
        self.file.write(front[HEADER.itemsize :])
        self.file.seek(0)
        self.file.write(front[: HEADER.itemsize])
        self.file.flush()
        tables = zlib.crc32(allocations.data, zlib.crc32(front))
        checksums = Checksums(self.page_size, self.first_page, tables, tuple(self.page_checksums))
        return end + allocations.nbytes, checksums
