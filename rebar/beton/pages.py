"""Laying encoded pictures into the pages of a .beton file."""

from typing import IO

import numpy as np

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

    ``file`` is an empty file open for binary writing, ``page_size`` is in bytes.
    """

    def __init__(self, file: IO[bytes], num_samples: int, page_size: int) -> None:
        self.samples = np.zeros(num_samples, SAMPLE)
        self.num_samples = 0
        self.picture_bytes = 0
        self._allocations = np.zeros(num_samples, ALLOCATION)
        self._file, self._page_size = file, page_size
        tables = HEADER.itemsize + len(FIELDS) * FIELD_DESCRIPTOR.itemsize + self.samples.nbytes
        self._position = round_up(tables, page_size)
        file.seek(self._position)

    def append(self, label: int, picture: EncodedPicture) -> None:
        """Add the next sample, whose picture must not be larger than a page."""
        size = picture.data.nbytes
        if self._position % self._page_size + size > self._page_size:
            self._fill_page()
        self._file.write(picture.data.data)
        self.samples[self.num_samples] = (
            (picture.mode, picture.width, picture.height, self._position),
            label,
        )
        self._allocations[self.num_samples] = (self.num_samples, self._position, size)
        self._position += size
        self.num_samples += 1
        self.picture_bytes += size

    def finish(self) -> int:
        """Write the tables, the header last; returns the size of the file in bytes."""
        assert self.num_samples == len(self.samples)
        self._fill_page()  # FFCV reads whole pages, the last one too
        self._file.write(self._allocations.data)
        header = np.zeros(1, HEADER)
        header[0] = (VERSION, len(FIELDS), self._page_size, self.num_samples, self._position)
        self._file.seek(HEADER.itemsize)
        for name, type_id in FIELDS:
            self._file.write(field_descriptor(name, type_id).data)
        self._file.write(self.samples.data)
        self._file.seek(0)
        self._file.write(header.data)
        return self._position + self._allocations.nbytes

    def _fill_page(self) -> None:
        page_end = round_up(self._position, self._page_size)
        self._file.write(bytes(page_end - self._position))
        self._position = page_end
