"""The sidecar of a .beton file, ``train.beton.json``: class names, image policy, and CRC-32 checksums.

A sidecar contains no times or paths, so equal inputs and settings give equal sidecars. Training does not require it.
The checksum of the tables is verified whenever the file is opened. The checksums of the pages are verified by
``--verify``, by staging, and when an image is corrupt.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import rebar
from rebar.beton.format import HEADER, BetonError

FORMAT = "rebar-sidecar"
VERSION = 1
ALGORITHM = "crc32"
_BLOCK = 1 << 24  # bytes per call of zlib, so that other threads can run between calls


def crc32(content: np.ndarray, value: int = 0) -> int:
    """Return the CRC-32 of an array, uint8 ``[n]``; ``value`` is the CRC-32 of the preceding bytes."""
    for start in range(0, content.size, _BLOCK):
        value = zlib.crc32(content[start : start + _BLOCK].data, value)
    return value


@dataclass(frozen=True)
class Checksums:
    """CRC-32 checksums of a .beton file."""

    page_size: int
    """Bytes."""
    first_page: int
    """The page at which the images start, counted from the start of the file."""
    tables: int
    """Of everything before the first page and after the last one."""
    pages: tuple[int, ...]
    """Of each page, starting with ``first_page``."""

    def tables_match(self, data: np.ndarray) -> bool:
        """Return whether the tables of a complete file (uint8) have this checksum."""
        start = self.first_page * self.page_size
        return crc32(data[start + len(self.pages) * self.page_size :], crc32(data[:start])) == self.tables

    def page_matches(self, data: np.ndarray, offset: int) -> bool:
        """Return whether the page that contains byte ``offset`` of a complete file (uint8) has its checksum."""
        page = offset // self.page_size
        if not 0 <= page - self.first_page < len(self.pages):
            return False
        return crc32(data[page * self.page_size : (page + 1) * self.page_size]) == self.pages[page - self.first_page]

    def to_json(self) -> dict[str, Any]:
        """Return the checksums as JSON values."""
        return {
            "algorithm": ALGORITHM,
            "page_size": self.page_size,
            "first_page": self.first_page,
            "tables": f"{self.tables:08x}",
            "pages": [f"{page:08x}" for page in self.pages],
        }

    @staticmethod
    def from_json(content: Any) -> "Checksums":
        """Parse the result of :meth:`to_json`. Raises ValueError."""
        try:
            if content["algorithm"] != ALGORITHM:
                raise ValueError(f"checksums of algorithm {content['algorithm']!r} instead of {ALGORITHM}")
            found = Checksums(
                page_size=int(content["page_size"]),
                first_page=int(content["first_page"]),
                tables=int(content["tables"], 16),
                pages=tuple(int(page, 16) for page in content["pages"]),
            )
        except (KeyError, TypeError):
            raise ValueError("malformed checksums") from None
        if found.page_size <= 0 or found.first_page < 0:
            raise ValueError("checksums with an invalid page size or first page")
        return found


@dataclass(frozen=True)
class Sidecar:
    """The content of a sidecar."""

    num_samples: int
    bytes: int
    """Size of the .beton file."""
    class_names: tuple[str, ...]
    """The name of every label, in label order."""
    images: Mapping[str, Any] = field(default_factory=dict)
    """How images were stored: the fields of :class:`~rebar.beton.encode.ImagePolicy`, without the seed."""
    seed: int = 0
    """The seed of the sample order and of every other random choice of the writer."""
    checksums: Checksums | None = None
    """None if the sidecar contains none."""
    rebar_version: str = rebar.__version__

    def to_json(self) -> str:
        """Return the sidecar as JSON text. Equal sidecars give equal text."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "rebar_version": self.rebar_version,
            "num_samples": self.num_samples,
            "bytes": self.bytes,
            "seed": self.seed,
            "images": dict(self.images),
            "class_names": list(self.class_names),
        }
        if self.checksums is not None:
            content["checksums"] = self.checksums.to_json()
        return json.dumps(content, indent=1) + "\n"


def sidecar_path(beton_path: Path | str) -> Path:
    """Return the path of the sidecar of a .beton file."""
    path = Path(beton_path)
    return path.with_name(path.name + ".json")


def read_sidecar(beton_path: Path | str) -> Sidecar | None:
    """Read the sidecar of a .beton file; return None if there is none.

    Raises BetonError if it cannot be read, or if it does not match the .beton file.
    """
    path = sidecar_path(beton_path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(path, f"cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise _invalid(path, f"is not valid JSON ({error})") from None
    sidecar = _parse(path, content)
    _compare(path, sidecar, Path(beton_path))
    return sidecar


def beton_changed(beton_path: Path, problem: str) -> BetonError:
    """Return the error for a .beton file that does not match its sidecar."""
    return BetonError(
        f"{beton_path} does not match its sidecar: {problem}. The file was modified, truncated or replaced after it "
        "was written. Copy both files again.",
        code="beton-changed",
    )


def _invalid(path: Path, problem: str) -> BetonError:
    return BetonError(
        f"{path}: {problem}. Copy it again, or delete it to continue without class names and checksums.",
        code="sidecar-invalid",
    )


def _parse(path: Path, content: Any) -> Sidecar:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _invalid(path, f"is not a sidecar of a .beton file: 'format' is not '{FORMAT}'")
    if content.get("version") != VERSION:
        raise _invalid(path, f"has version {content.get('version')!r}, but this version of Rebar reads {VERSION}")
    expected = {
        "num_samples": int,
        "bytes": int,
        "seed": int,
        "images": dict,
        "class_names": list,
        "rebar_version": str,
    }
    for key, kind in expected.items():
        if not isinstance(content.get(key), kind) or isinstance(content[key], bool):
            raise _invalid(path, f"'{key}' is missing or not of type {kind.__name__}")
    if not all(isinstance(name, str) for name in content["class_names"]):
        raise _invalid(path, "'class_names' contains values other than text")
    values = {key: content[key] for key in expected}
    try:
        checksums = Checksums.from_json(content["checksums"]) if "checksums" in content else None
    except ValueError as error:
        raise _invalid(path, f"has {error}") from None
    return Sidecar(**{**values, "class_names": tuple(content["class_names"]), "checksums": checksums})


def _compare(path: Path, sidecar: Sidecar, beton_path: Path) -> None:
    try:
        size = beton_path.stat().st_size
        with beton_path.open("rb") as file:
            header = np.frombuffer(file.read(HEADER.itemsize), HEADER, count=1)[0]
    except (OSError, ValueError):
        return  # the reader of the .beton file reports this
    for unit, expected, found in (
        ("samples", sidecar.num_samples, int(header["num_samples"])),
        ("bytes", sidecar.bytes, size),
    ):
        if expected != found:
            raise beton_changed(beton_path, f"{path.name} records {expected:,} {unit}, the file has {found:,}")
