"""Write encoded images into the pages and tables of a .beton file."""

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
from rebar.storage.files import write_at

FIELDS = (("image", TYPE_IMAGE), ("label", TYPE_INT))
SAMPLE = sample_dtype([type_id for _, type_id in FIELDS])


@dataclass(frozen=True)
class Page:
    """The checksum and the table rows of one page."""

    checksum: int
    samples: np.ndarray
    """SAMPLE records"""
    allocations: np.ndarray
    """ALLOCATION records"""


def size_before_pages(capacity: int, page_size: int) -> int:
    """Return the number of bytes before the first page of a file with room for ``capacity`` samples."""
    tables = HEADER.itemsize + len(FIELDS) * FIELD_DESCRIPTOR.itemsize + capacity * SAMPLE.itemsize
    return round_up(tables, page_size)


class PageWriter:
    """Fills pages with images and keeps their table rows.

    ``file`` is open for binary writing, ``page_size`` is in bytes, and ``capacity`` is the maximum number of samples.
    A page is buffered in memory until the caller calls :meth:`write_page`.
    """

    def __init__(self, file: IO[bytes], capacity: int, page_size: int) -> None:
        self.num_samples = 0
        self.image_bytes = 0
        self.page_size = page_size
        self.first_page = size_before_pages(capacity, page_size) // page_size
        self.page_checksums: list[int] = []
        self._samples = np.zeros(capacity, SAMPLE)
        self._allocations = np.zeros(capacity, ALLOCATION)
        self.file = file
        self._page = np.zeros(page_size, np.uint8)
        self._used = 0
        self._first_sample = 0  # on the current page

    @property
    def samples(self) -> np.ndarray:
        """The SAMPLE records written so far."""
        return self._samples[: self.num_samples]

    @property
    def page_start(self) -> int:
        """The byte offset of the current page in the file."""
        return (self.first_page + len(self.page_checksums)) * self.page_size

    def fits(self, size: int) -> bool:
        """Return whether an image of ``size`` bytes fits into the current page."""
        return self._used + size <= self.page_size

    def append(self, label: int, image: EncodedImage) -> None:
        """Add a sample, whose image must fit into the current page."""
        size, position = image.data.nbytes, self.page_start + self._used
        self._page[self._used : self._used + size] = image.data
        self._samples[self.num_samples] = ((image.mode, image.width, image.height, position), label)
        self._allocations[self.num_samples] = (self.num_samples, position, size)
        self._used += size
        self.num_samples += 1
        self.image_bytes += size

    def write_page(self) -> Page:
        """Write the current page to the file and start the next one."""
        self._page[self._used :] = 0  # FFCV reads complete pages, including the last one
        write_at(self.file, self._page.data, self.page_start)
        rows = slice(self._first_sample, self.num_samples)
        page = Page(zlib.crc32(self._page.data), self._samples[rows], self._allocations[rows])
        self._start_page(page.checksum)
        return page

    def restore_page(self, page: Page) -> None:
        """Add the table rows of a page that is already in the file."""
        rows = slice(self.num_samples, self.num_samples + len(page.samples))
        self._samples[rows], self._allocations[rows] = page.samples, page.allocations
        self.num_samples += len(page.samples)
        self.image_bytes += int(page.allocations["size"].sum())
        self._start_page(page.checksum)

    def _start_page(self, previous_checksum: int) -> None:
        self.page_checksums.append(previous_checksum)
        self._used, self._first_sample = 0, self.num_samples

    def write_tables(self) -> tuple[int, Checksums]:
        """Write the tables, with the header last; return the size of the file in bytes, and its checksums."""
        assert self._used == 0
        end, allocations = self.page_start, self._allocations[: self.num_samples]
        header = np.zeros(1, HEADER)
        header[0] = (VERSION, len(FIELDS), self.page_size, self.num_samples, end)
        descriptors = [field_descriptor(name, type_id).tobytes() for name, type_id in FIELDS]
        front = b"".join([header.tobytes(), *descriptors, self.samples.tobytes()])
        front += bytes(self.first_page * self.page_size - len(front))
        write_at(self.file, allocations.tobytes(), end)
        write_at(self.file, front[HEADER.itemsize :], HEADER.itemsize)
        write_at(self.file, front[: HEADER.itemsize], 0)
        tables = zlib.crc32(allocations.data, zlib.crc32(front))
        checksums = Checksums(self.page_size, self.first_page, tables, tuple(self.page_checksums))
        return end + allocations.nbytes, checksums
