"""The rules by which names identify images and splits, the same for every kind of source."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from rebar.errors import RebarError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File extensions of images, compared case-insensitively. The list is torchvision's ``IMG_EXTENSIONS``."""
Split = Literal["train", "val"]
SPLIT_WORDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
}
"""Words in the names of files and folders that identify a split."""
SPLIT_FOLDERS = ("{split}", "ILSVRC/Data/CLS-LOC/{split}", "Data/CLS-LOC/{split}")
"""Possible locations of a split in a dataset's folder. If none of them exists, the folder itself is the split."""

Name = TypeVar("Name", str, Path)


def is_image(name: str) -> bool:
    """Return whether a file name has the extension of an image."""
    return name.lower().endswith(EXTENSIONS)


def other_split(split: str) -> str:
    """Return ``train`` for ``val``, and ``val`` for ``train``."""
    return "val" if split == "train" else "train"


def find_split(folder: Path, split: str) -> Path:
    """Return the folder of a split's images: a subfolder of ``folder``, or ``folder`` itself.

    Raises RebarError if ``folder`` contains the other split only.
    """
    for pattern in SPLIT_FOLDERS:
        if (found := folder / pattern.format(split=split)).is_dir():
            return found
        other = pattern.format(split=other_split(split))
        if (folder / other).is_dir():
            raise RebarError(
                f"{folder}: contains {other}/, but no {split}/. Complete the dataset, or give the folder of the "
                f"{split} images.",
                code="source-split-not-found",
            )
    return folder


def filter_split(names: Sequence[Name], split: str, location: str) -> list[Name]:
    """Return the names that mention the split, or all of them if no name mentions any split.

    Raises RebarError if the names mention other splits only; the message contains ``location``.
    """
    matching = [name for name in names if _mentions(name, SPLIT_WORDS[split])]
    if matching or not any(_mentions(name, (*SPLIT_WORDS[other_split(split)], "test")) for name in names):
        return matching or list(names)
    raise RebarError(
        f"{location}: contains files of another split, such as {names[0]}, but none of {split}. Give the files of the "
        f"{split} split.",
        code="source-split-not-found",
    )


def _mentions(name: str | Path, words: Sequence[str]) -> bool:
    text = name.name if isinstance(name, Path) else name
    return bool(set(re.split(r"[^a-z]+", text.lower())) & set(words))
