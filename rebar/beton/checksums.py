"""Checksums of a .beton file, kept in its sidecar: of its tables, and of every page (CRC-32, as zlib computes it).

The tables are all that lies before the first page and behind the last one. They are compared whenever the file is
opened, which costs little; pages are compared by ``--verify``, by copies, and where a picture turns out corrupt.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

ALGORITHM = "crc32"
_BLOCK = 1 << 24  # bytes taken at a time: other threads run meanwhile


@dataclass(frozen=True)
class Checksums:
    """What a sidecar says of its file's bytes."""

    page_size: int
    """Bytes."""
    first_page: int
    """The page that the pictures begin with, counted from the start of the file."""
    tables: int
    pages: tuple[int, ...]
    """One a page, from the first page on."""

    def tables_match(self, data: np.ndarray) -> bool:
        """Whether the tables of a whole file (uint8) are the ones written."""
        start = self.first_page * self.page_size
        return checksum(data[start + len(self.pages) * self.page_size :], checksum(data[:start])) == self.tables

    def page_matches(self, data: np.ndarray, offset: int) -> bool:
        """Whether the page around byte ``offset`` of a whole file (uint8) is the one written."""
        page = offset // self.page_size
        if not 0 <= page - self.first_page < len(self.pages):
            return False
        return checksum(data[page * self.page_size : (page + 1) * self.page_size]) == self.pages[page - self.first_page]

    def to_json(self) -> dict[str, Any]:
        """As the sidecar holds it."""
        return {
            "algorithm": ALGORITHM,
            "page_size": self.page_size,
            "first_page": self.first_page,
            "tables": f"{self.tables:08x}",
            "pages": [f"{page:08x}" for page in self.pages],
        }

    @staticmethod
    def from_json(content: Any) -> "Checksums":
        """The reverse of :meth:`to_json`. Raises ValueError for anything else."""
        try:
            if content["algorithm"] != ALGORITHM:
                raise ValueError(f"checksums of the kind {content['algorithm']!r}, not {ALGORITHM}")
            found = Checksums(
                page_size=int(content["page_size"]),
                first_page=int(content["first_page"]),
                tables=int(content["tables"], 16),
                pages=tuple(int(page, 16) for page in content["pages"]),
            )
        except (KeyError, TypeError):
            raise ValueError("checksums that cannot be read") from None
        if found.page_size <= 0 or found.first_page < 0:
            raise ValueError("checksums that cannot be right")
        return found


def checksum(content: np.ndarray, before: int = 0) -> int:
    """The CRC-32 of uint8 ``[n]``, following on what has the checksum ``before``."""
    for start in range(0, content.size, _BLOCK):
        before = zlib.crc32(content[start : start + _BLOCK].data, before)
    return before
