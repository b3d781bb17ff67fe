"""What a .beton file cannot hold itself, in a small JSON file beside it: ``train.beton.json``.

It names the classes, says how the pictures were stored, and holds checksums. It is the same for the same input and
settings: it holds no times and no paths of the machine that wrote it. A .beton without one still trains.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import rebar
from rebar.beton.checksums import Checksums
from rebar.beton.format import HEADER, BetonError

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
    """How the pictures were stored: the fields of an :class:`~rebar.beton.images.ImagePolicy`."""
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
