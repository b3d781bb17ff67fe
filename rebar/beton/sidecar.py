"""Checksums of a .beton file, kept in its sidecar: of its tables, and of every page (CRC-32, as zlib computes it).

The tables are all that lies before the first page and behind the last one. They are compared whenever the file is
opened, which costs little; pages are compared by ``--verify``, by copies, and where an image turns out corrupt.

What a .beton file cannot hold itself, in a small JSON file beside it: ``train.beton.json``.

It names the classes, says how the images were stored, and holds checksums. It is the same for the same input and
settings: it holds no times and no paths of the machine that wrote it. A .beton without one still trains.
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

ALGORITHM = "crc32"
_BLOCK = 1 << 24  # bytes taken at a time: other threads run meanwhile


@dataclass(frozen=True)
class Checksums:
    """What a sidecar says of its file's bytes."""

    page_size: int
    """Bytes."""
    first_page: int
    """The page that the images begin with, counted from the start of the file."""
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


FORMAT = "rebar-sidecar"
VERSION = 1


@dataclass(frozen=True)
class Sidecar:
    """The content of a sidecar."""

    num_samples: int
    bytes: int
    """Size of the .beton file."""
    class_names: tuple[str, ...]
    """The name of every label, in the labels' order."""
    images: Mapping[str, Any] = field(default_factory=dict)
    """How the images were stored: the fields of an :class:`~rebar.beton.encode.ImagePolicy`."""
    seed: int = 0
    """What the order of the samples and every other draw of the writer came from."""
    checksums: Checksums | None = None
    """Of the .beton file; None where the sidecar was written without."""
    rebar_version: str = rebar.__version__

    def to_json(self) -> str:
        """The sidecar as text, the same for equal contents."""
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
    """Where the sidecar of a .beton file lies."""
    path = Path(beton_path)
    return path.with_name(path.name + ".json")


def read_sidecar(beton_path: Path | str) -> Sidecar | None:
    """The sidecar of a .beton file, or None where there is none.

    Raises BetonError where it cannot be read, or where it does not belong to the file beside it.
    """
    path = sidecar_path(beton_path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BetonError(f"{path}: cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"not valid JSON ({error})") from None
    sidecar = _parse(path, content)
    _compare(path, sidecar, Path(beton_path))
    return sidecar


def _broken(path: Path, reason: str) -> BetonError:
    return BetonError(
        f"{path}: {reason}; copy it again from where it was written, or delete it to do without class names and "
        "checksums"
    )


def _parse(path: Path, content: Any) -> Sidecar:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _broken(path, f"not a sidecar of a .beton file (no format '{FORMAT}')")
    if content.get("version") != VERSION:
        raise _broken(path, f"sidecar version {content.get('version')!r}, but this Rebar reads {VERSION}")
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
            raise _broken(path, f"'{key}' is missing or not of type {kind.__name__}")
    if not all(isinstance(name, str) for name in content["class_names"]):
        raise _broken(path, "'class_names' must hold text only")
    values = {key: content[key] for key in expected}
    try:
        checksums = Checksums.from_json(content["checksums"]) if "checksums" in content else None
    except ValueError as error:
        raise _broken(path, f"has {error}") from None
    return Sidecar(**{**values, "class_names": tuple(content["class_names"]), "checksums": checksums})


def _compare(path: Path, sidecar: Sidecar, beton_path: Path) -> None:
    try:
        size = beton_path.stat().st_size
        with beton_path.open("rb") as file:
            header = np.frombuffer(file.read(HEADER.itemsize), HEADER, count=1)[0]
    except (OSError, ValueError):
        return  # no .beton beside it, or not one: for its reader to say
    for what, said, found in (
        ("samples", sidecar.num_samples, int(header["num_samples"])),
        ("bytes", sidecar.bytes, size),
    ):
        if said != found:
            raise changed(beton_path, f"the sidecar {path.name} speaks of {said:,} {what}, the file has {found:,}")


def changed(beton_path: Path, what: str) -> BetonError:
    """The error of a file that is not the one its sidecar was written with."""
    return BetonError(
        f"{beton_path}: was changed, cut short or mixed up with another file since it was written: {what}; copy both "
        "again from where they were written"
    )
