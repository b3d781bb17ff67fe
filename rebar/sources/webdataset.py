"""WebDataset shards: tars of samples, whose files have the same name up to the first dot.

A sample's image is ``key.jpg`` (or another image's ending), its class ``key.cls`` or within ``key.json``.
"""

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rebar.errors import RebarError
from rebar.sources.files import ByteRanges, Range, is_image
from rebar.sources.tar import Member, list_members, refuse_compressed

THREADS = 16
JSON_KEYS = ("cls", "label", "class", "class_id", "class_name", "synset")
CLASS_NAME_FILES = ("classes.txt", "class_names.txt", "synsets.txt", "LOC_synset_mapping.txt")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand_shards(pattern: str) -> list[Path]:
    """The files that ``shard-{000..146}.tar``, ``shard-*.tar`` or a plain path means, in order."""
    if found := _BRACES.search(pattern):
        first, last = found.groups()
        numbers = range(int(first), int(last) + 1)
        names = [f"{pattern[: found.start()]}{n:0{len(first)}}{pattern[found.end() :]}" for n in numbers]
        return [path for name in names for path in expand_shards(name)]
    path = Path(pattern)
    return sorted(path.parent.glob(path.name)) if "*" in path.name or "?" in path.name else [path]


def has_samples(path: Path) -> bool:
    """Whether a tar begins with a WebDataset sample: an image or its label, under one name."""
    endings: dict[str, set[str]] = {}
    for number, member in enumerate(list_members(path)):
        key, ending = _split_name(member.name)
        found = endings.setdefault(key, set())
        found.add(ending)
        if found & {"cls", "json"} and any(is_image(f".{e}") for e in found):
            return True
        if number == 20:
            break
    return False


def open_webdataset(shards: Sequence[Path]) -> ByteRanges:
    """The images of the shards, in their order. Raises RebarError."""
    for path in shards:
        refuse_compressed(path)
    with ThreadPoolExecutor(THREADS) as pool:
        contents = list(pool.map(_samples, shards))
    ranges = [Range(n, *image) for n, samples in enumerate(contents) for image, _ in samples]
    found = [label for samples in contents for _, label in samples]
    if not found:
        raise RebarError(f"{shards[0]}: holds no samples with an image and a .cls or .json")
    if all(isinstance(label, str) for label in found):
        names = sorted({str(label) for label in found})
        numbers = {name: number for number, name in enumerate(names)}
        return ByteRanges.of(shards, names, ranges, [numbers[str(label)] for label in found])
    if any(isinstance(label, str) for label in found):
        raise RebarError(f"{shards[0].parent}: some samples have a number as their class, some a name")
    labels = [int(label) for label in found]
    return ByteRanges.of(shards, _class_names(shards[0].parent, max(labels) + 1), ranges, labels)


def _split_name(name: str) -> tuple[str, str]:
    folder, base = os.path.split(name)
    key, _, ending = base.partition(".")
    return os.path.join(folder, key), ending.lower()


def _samples(path: Path) -> list[tuple[Member, int | str]]:
    """(image, class) of every sample in a shard."""
    files: dict[str, dict[str, Member]] = {}
    for member in list_members(path):
        key, ending = _split_name(member.name)
        files.setdefault(key, {})[ending] = member
    found = []
    with path.open("rb") as file:
        for key, parts in files.items():
            image = next((member for ending, member in parts.items() if is_image(f".{ending}")), None)
            if image is None:
                continue
            told = parts.get("cls") or parts.get("json")
            if told is None:
                raise RebarError(f"{path}:{image.name}: has neither {key}.cls nor {key}.json to tell its class")
            content = os.pread(file.fileno(), told.size, told.offset)
            found.append((image, _parse_label(f"{path}:{told.name}", content, is_json="cls" not in parts)))
    return found


def _parse_label(name: str, content: bytes, *, is_json: bool) -> int | str:
    try:
        value = content.decode().strip()
        if is_json:
            fields = json.loads(value)
            value = next(fields[key] for key in JSON_KEYS if key in fields)
        text = str(value)
        label = int(text) if text.removeprefix("-").isdigit() else text
    except (ValueError, StopIteration, TypeError):
        raise RebarError(f"{name}: does not tell a class (JSON may have it as {', '.join(JSON_KEYS)})") from None
    if label == "" or (isinstance(label, int) and label < 0):
        raise RebarError(f"{name}: {text!r} is no class")
    return label


def _class_names(folder: Path, at_least: int) -> list[str]:
    """The first word of every line of a file of class names beside the shards, else the numbers themselves."""
    for name in CLASS_NAME_FILES:
        if (path := folder / name).is_file():
            names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
            if len(names) < at_least:
                raise RebarError(f"{path}: names {len(names)} classes, but the shards have label {at_least - 1}")
            return names
    return [str(number) for number in range(at_least)]
