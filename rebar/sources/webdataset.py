"""WebDataset shards: tars in which the files of a sample share their name up to the first dot.

The image is ``key.jpg`` (or another image extension). The class is in ``key.cls``, or a field of ``key.json``.
"""

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rebar.errors import RebarError
from rebar.sources.labels import parse_class
from rebar.sources.layout import HIDDEN, has_hidden_part, index_classes, is_image
from rebar.sources.tar import check_uncompressed
from rebar.sources.tar_index import ByteRanges, cached_index, mixed_classes_error, read_tars
from rebar.sources.tar_members import Member, list_members

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
        if found & {"cls", "json"} and any(map(_is_image_extension, found)):
            return True
    return False


def open_webdataset(shards: Sequence[Path], image_key: str = "") -> ByteRanges:
    """Open the samples of the shards, in order. ``image_key`` is the extension of the image in every sample.

    By default, a sample may have only one image. Samples without an image or without a class are omitted and counted.
    Raises RebarError.
    """
    for path in shards:
        check_uncompressed(path)
    image_key = image_key.lower().removeprefix(".")
    read_shard = functools.partial(_read_shard, image_key=image_key)
    index = cached_index(
        shards, f"webdataset {image_key}", lambda: read_tars(shards, list(enumerate(shards)), read_shard)
    )
    if not len(index):
        found = ", ".join(f"{count:,} x {kind}" for kind, count in index.omitted.items()) or "no samples"
        raise RebarError(
            f"{shards[0]}: contains no sample with an image and a .cls or .json file ({found}). Pass shards of labeled "
            "images.",
            code="source-empty",
        )
    if index.class_names:
        return index
    return replace(index, class_names=_read_class_names(shards[0].parent, int(index.labels.max()) + 1))


def _split_key(name: str) -> tuple[str, str]:
    """Return the key and the extension of a file: its path up to the first dot of its name, and the rest."""
    dot = name.find(".", name.rfind("/") + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :].lower())


@functools.lru_cache
def _is_image_extension(extension: str) -> bool:
    return is_image(f"x.{extension}")


def _read_shard(task: tuple[int, Path], image_key: str) -> ByteRanges:
    """Return the samples of a shard, given its number and path. Runs in worker processes."""
    number, path = task
    omitted: Counter[str] = Counter()
    images: list[Member] = []
    classes: list[int | str] = []
    with path.open("rb") as file:
        for key, files in _group_samples(path, omitted).items():
            image = _find_image(path, key, files, image_key)
            label = files.get("cls") or files.get("json")
            if image is None:
                omitted[f"sample without {f'.{image_key}' if image_key else 'an image'}"] += 1
            elif label is None:
                omitted["sample without a .cls or .json file"] += 1
            else:
                images.append(image)
                classes.append(_read_class(path, file.fileno(), label, is_json="cls" not in files))
    names = sorted({value for value in classes if isinstance(value, str)})
    if names and not all(isinstance(value, str) for value in classes):
        raise mixed_classes_error(str(path))
    labels = index_classes(classes, names) if names else classes
    return ByteRanges.from_members(path, names, images, labels, omitted, number)


def _group_samples(path: Path, omitted: Counter[str]) -> dict[str, dict[str, Member]]:
    """Return key -> extension -> file of a shard."""
    samples: dict[str, dict[str, Member]] = {}
    for member in list_members(path, omitted=omitted):
        if has_hidden_part(member.name):
            omitted[HIDDEN] += 1
            continue
        key, extension = _split_key(member.name)
        files = samples.setdefault(key, {})
        if extension in files:
            raise RebarError(
                f"{path}: contains {member.name} twice. Use a unique key per sample.",
                code="webdataset-ambiguous",
            )
        files[extension] = member
    return samples


def _find_image(path: Path, key: str, files: Mapping[str, Member], image_key: str) -> Member | None:
    """Return the image of a sample, or None. Raises RebarError if there are several and no ``image_key``."""
    if image_key:
        return files.get(image_key)
    extensions = [extension for extension in files if _is_image_extension(extension)]
    if len(extensions) > 1:
        raise RebarError(
            f"{path}: sample {key} has several images ({', '.join(extensions)}). Choose one, for example "
            f"with --image-key {min(extensions, key=len)}",
            code="webdataset-ambiguous",
        )
    return files[extensions[0]] if extensions else None


def _read_class(path: Path, descriptor: int, member: Member, *, is_json: bool) -> int | str:
    """Return the class in a .cls or .json file of a shard."""
    content = member.content
    if content is None:
        content = os.pread(descriptor, member.size, member.offset)
    try:
        return _parse_json(content) if is_json else _parse_cls(content)
    except (ValueError, StopIteration, TypeError) as error:
        reason = f"it {error}" if str(error).startswith("is ") else "the file cannot be parsed, or has no such field"
        raise RebarError(
            f"{path}:{member.name} does not contain a class: {reason}. Store a number or a name; in JSON, as "
            f"{', '.join(JSON_KEYS)}.",
            code="webdataset-label-invalid",
        ) from None


@functools.lru_cache(maxsize=1 << 14)
def _parse_cls(content: bytes) -> int | str:
    return parse_class(content.decode())


def _parse_json(content: bytes) -> int | str:
    fields = json.loads(content)
    return parse_class(next(fields[key] for key in JSON_KEYS if key in fields))


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
