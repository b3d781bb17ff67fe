"""The sidecar of a .beton file, ``train.beton.json``: class names, image policy, and CRC-32 checksums.

A sidecar contains no times or paths, so equal inputs and settings give equal sidecars. Training does not require it.
The checksum of the tables is verified whenever the file is opened. The checksums of the pages are verified by
``--verify``, by staging, and when an image is corrupt.
"""

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

import rebar
from rebar.beton.format import HEADER, BetonError

FORMAT = "rebar-sidecar"
VERSION = 1
ALGORITHM = "crc32"
_CRC32 = re.compile(r"[0-9a-f]{8}")
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
    """CRC-32 of everything before the first page and after the last one."""
    pages: tuple[int, ...]
    """CRC-32 of each page, starting with ``first_page``."""

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
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(path, f"cannot be read: {error}") from None
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _invalid(path, f"is not valid JSON ({error})") from None
    try:
        sidecar = parse_sidecar(content)
    except ValueError as error:
        raise _invalid(path, str(error)) from None
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


def parse_sidecar(content: Any) -> Sidecar:
    """Validate parsed JSON, which may have any type and values, and return it as a sidecar. Raises ValueError."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"is not a sidecar of a .beton file: 'format' is not '{FORMAT}'")
    version = content.get("version")
    if not _is_integer(version):
        raise ValueError("'version' is missing or not an integer")
    if version != VERSION:
        raise ValueError(f"has version {version}, but this version of Rebar reads {VERSION}")
    valid: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "num_samples": ("a number of samples", _is_size),
        "bytes": ("a number of bytes", _is_size),
        "seed": ("an integer", _is_integer),
        "images": ("an object of strings and numbers", _is_settings),
        "class_names": ("a list of strings", lambda value: isinstance(value, list) and all(map(_is_text, value))),
        "rebar_version": ("a text", _is_text),
    }
    for key, (description, is_valid) in valid.items():
        if not is_valid(content.get(key)):
            raise ValueError(f"'{key}' is missing or not {description}")
    values = {key: content[key] for key in valid}
    checksums = _parse_checksums(content["checksums"], content["bytes"]) if "checksums" in content else None
    return Sidecar(**{**values, "class_names": tuple(content["class_names"]), "checksums": checksums})


def _parse_checksums(content: Any, num_bytes: int) -> Checksums:
    """Parse the result of :meth:`Checksums.to_json`, for a file of ``num_bytes``. Raises ValueError."""
    if not isinstance(content, dict) or content.get("algorithm") != ALGORITHM:
        raise ValueError(f"'checksums' is not an object with the algorithm {ALGORITHM}")
    page_size, first_page, pages = (content.get(key) for key in ("page_size", "first_page", "pages"))
    if not _is_size(page_size) or page_size == 0 or not _is_size(first_page) or not isinstance(pages, list):
        raise ValueError("'checksums' has no valid page size, first page or pages")
    if max(first_page + len(pages), 1) * page_size > num_bytes:
        raise ValueError("'checksums' has pages outside the file")
    values = [content.get("tables"), *pages]
    if not all(isinstance(value, str) and _CRC32.fullmatch(value) for value in values):
        raise ValueError("'checksums' has a value that is not a CRC-32")
    tables, *parsed = (int(value, 16) for value in values)
    return Checksums(page_size, first_page, tables, tuple(parsed))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> TypeGuard[int]:
    return _is_integer(value) and 0 <= value < 1 << 63


def _is_text(value: Any) -> bool:
    """Return whether the value is text without lone surrogates, which cannot be printed."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_settings(value: Any) -> bool:
    def is_setting(value: Any) -> bool:
        is_number = isinstance(value, float) and math.isfinite(value)
        return value is None or isinstance(value, bool) or is_number or _is_integer(value) or _is_text(value)

    return isinstance(value, dict) and all(_is_text(key) and is_setting(item) for key, item in value.items())


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
