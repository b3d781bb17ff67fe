"""WebDataset shards: tars in which the files of a sample share their name up to the first dot.

The image is ``key.jpg`` (or another image extension). The class is in ``key.cls``, or a field of ``key.json``.
"""

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rebar.errors import RebarError
from rebar.sources.files import ByteRange, ByteRanges, index_classes
from rebar.sources.layout import is_image
from rebar.sources.tar import NUM_THREADS, Member, check_uncompressed, list_members

JSON_KEYS = ("cls", "label", "class", "class_id", "class_name", "synset")
CLASS_NAME_FILES = ("classes.txt", "class_names.txt", "synsets.txt", "LOC_synset_mapping.txt")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_FILES_INSPECTED = 21  # at the start of a tar, to detect a shard


def expand_shards(pattern: str) -> list[Path]:
    """Return the paths of a pattern such as ``shard-{000..146}.tar`` or ``shard-*.tar``, in order."""
    if found := _BRACES.search(pattern):
        first, last = found.groups()
        numbers = range(int(first), int(last) + 1)
        names = [f"{pattern[: found.start()]}{n:0{len(first)}}{pattern[found.end() :]}" for n in numbers]
        return [path for name in names for path in expand_shards(name)]
    path = Path(pattern)
    return sorted(path.parent.glob(path.name)) if "*" in path.name or "?" in path.name else [path]


def is_shard(path: Path) -> bool:
    """Return whether a tar starts with a WebDataset sample: an image and its label under the same key."""
    extensions: dict[str, set[str]] = {}
    for member, _ in zip(list_members(path), range(_FILES_INSPECTED), strict=False):
        key, extension = _split_key(member.name)
        found = extensions.setdefault(key, set())
        found.add(extension)
        if found & {"cls", "json"} and any(is_image(f"x.{e}") for e in found):
            return True
    return False


def open_webdataset(shards: Sequence[Path]) -> ByteRanges:
    """Open the samples of the shards, in order. Raises RebarError."""
    for path in shards:
        check_uncompressed(path)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        contents = list(pool.map(_read_samples, shards))
    ranges = [ByteRange(number, *image) for number, samples in enumerate(contents) for image, _ in samples]
    labels = [label for samples in contents for _, label in samples]
    if not labels:
        raise RebarError(
            f"{shards[0]}: contains no sample with an image and a .cls or .json file. Give shards of labeled images.",
            code="source-empty",
        )
    names = [label for label in labels if isinstance(label, str)]
    if len(names) == len(labels):
        class_names = sorted(set(names))
        return ByteRanges.from_ranges(shards, class_names, ranges, index_classes(names, class_names))
    if names:
        raise RebarError(
            f"{shards[0].parent}: some samples have a number as their class, others a name. Use one form in all "
            "shards.",
            code="webdataset-label-invalid",
        )
    numbers = [int(label) for label in labels]
    return ByteRanges.from_ranges(shards, _read_class_names(shards[0].parent, max(numbers) + 1), ranges, numbers)


def _split_key(name: str) -> tuple[str, str]:
    folder, base = os.path.split(name)
    key, _, extension = base.partition(".")
    return os.path.join(folder, key), extension.lower()


def _read_samples(path: Path) -> list[tuple[Member, int | str]]:
    """Return (image, class) of every sample in a shard; files without an image are skipped."""
    samples: dict[str, dict[str, Member]] = {}
    for member in list_members(path):
        key, extension = _split_key(member.name)
        files = samples.setdefault(key, {})
        if extension in files:
            raise RebarError(
                f"{path}: contains {member.name} twice. Give every sample a key of its own.",
                code="webdataset-ambiguous",
            )
        files[extension] = member
    found = []
    with path.open("rb") as file:
        for key, files in samples.items():
            images = [member for extension, member in files.items() if is_image(f"x.{extension}")]
            if not images:
                continue
            if len(images) > 1:
                names = ", ".join(member.name for member in images)
                raise RebarError(
                    f"{path}: sample {key} has several images ({names}). Pack shards with one image per sample.",
                    code="webdataset-ambiguous",
                )
            image = images[0]
            label = files.get("cls") or files.get("json")
            if label is None:
                raise RebarError(
                    f"{path}:{image.name}: its class is missing. Add {key}.cls or {key}.json to the shard.",
                    code="webdataset-label-invalid",
                )
            content = os.pread(file.fileno(), label.size, label.offset)
            found.append((image, _parse_label(f"{path}:{label.name}", content, is_json="cls" not in files)))
    return found


def _parse_label(name: str, content: bytes, *, is_json: bool) -> int | str:
    try:
        value: Any = content.decode().strip()
        if is_json:
            fields = json.loads(value)
            value = next(fields[key] for key in JSON_KEYS if key in fields)
        text = str(value)
        if isinstance(value, (list, dict, bool)) or value is None:
            raise TypeError
        if re.fullmatch(r"-?\d+\.0*", text):  # a number written as a float
            text = text.partition(".")[0]
        label = int(text) if text.removeprefix("-").isdigit() else text
    except (ValueError, StopIteration, TypeError):
        raise RebarError(
            f"{name} does not contain a class. Store a number or a name; in JSON, as {', '.join(JSON_KEYS)}.",
            code="webdataset-label-invalid",
        ) from None
    if label == "" or (isinstance(label, int) and label < 0):
        raise RebarError(
            f"{name}: {text!r} is not a class. Store a number from 0, or a name.", code="webdataset-label-invalid"
        )
    return label


def _read_class_names(folder: Path, num_classes: int) -> list[str]:
    """Return the first word of each line of a file of class names next to the shards, or else the numbers as text."""
    for name in CLASS_NAME_FILES:
        if (path := folder / name).is_file():
            names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
            if len(names) < num_classes:
                raise RebarError(
                    f"{path}: contains {len(names)} class names, but the shards use label {num_classes - 1}. Complete "
                    "or remove it.",
                    code="webdataset-label-invalid",
                )
            return names
    return [str(number) for number in range(num_classes)]
