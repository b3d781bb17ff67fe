"""Training or validation: how folders and files are named after the two."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from rebar.errors import RebarError

Split = Literal["train", "val"]
SPLIT_WORDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
}
IMAGENET_SUBFOLDERS = ("{split}", "ILSVRC/Data/CLS-LOC/{split}", "Data/CLS-LOC/{split}")
"""Where below a folder a split may lie; else the folder is the split's own."""

Name = TypeVar("Name", str, Path)


def other(split: str) -> str:
    """The other split."""
    return "val" if split == "train" else "train"


def find_split(folder: Path, split: str) -> Path:
    """The folder of a split's pictures: ``folder`` itself or one below it.

    Raises RebarError where ``folder`` evidently holds splits, but not this one.
    """
    for pattern in IMAGENET_SUBFOLDERS:
        if (found := folder / pattern.format(split=split)).is_dir():
            return found
        there = pattern.format(split=other(split))
        if (folder / there).is_dir():
            raise RebarError(f"{folder}: there is {there}/ in it, but no {split}/ beside that")
    return folder


def of_split(names: Sequence[Name], split: str, where: str) -> list[Name]:
    """Those names that speak of the split, or all where none speaks of any.

    Raises RebarError, naming ``where`` they are, where they speak of another split only.
    """
    ours = [name for name in names if _speaks_of(name, SPLIT_WORDS[split])]
    if ours or not any(_speaks_of(name, (*SPLIT_WORDS[other(split)], "test")) for name in names):
        return ours or list(names)
    raise RebarError(f"{where}: has files of another split, such as {names[0]}, but none of {split}")


def _speaks_of(name: str | Path, words: Sequence[str]) -> bool:
    text = name.name if isinstance(name, Path) else name
    return bool(set(re.split(r"[^a-z]+", text.lower())) & set(words))
