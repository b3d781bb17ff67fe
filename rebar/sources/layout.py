"""The rules by which names identify images and splits, the same for every kind of source."""

import os
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
HIDDEN = "hidden file or folder"
NOT_AN_IMAGE = "file that is not an image"
OUTSIDE = "image outside the class folders"
"""Kinds of files that sources omit and count."""
SPLIT_FOLDERS = ("{split}", "ILSVRC/Data/CLS-LOC/{split}", "Data/CLS-LOC/{split}")
"""Possible locations of a split in a dataset's folder. If none of them exists, the folder itself is the split."""

Name = TypeVar("Name", str, Path)


def is_image(name: str) -> bool:
    """Return whether a relative path has the extension of an image, and neither it nor a folder in it is hidden."""
    return name.lower().endswith(EXTENSIONS) and not has_hidden_part(name)


def has_hidden_part(name: str) -> bool:
    """Return whether a relative path, or a folder in it, is hidden."""
    return (name.startswith(".") or "/." in name) and any(is_hidden(part) for part in name.split("/"))


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, such as ``.ipynb_checkpoints`` and macOS's ``._name``."""
    return name.startswith(".") and name not in (".", "..")


def other_split(split: str) -> str:
    """Return ``train`` for ``val``, and ``val`` for ``train``."""
    return "val" if split == "train" else "train"


def find_split(folder: Path, split: str) -> Path:
    """Return the folder of a split's images: a subfolder of ``folder``, or ``folder`` itself.

    Raises RebarError if ``folder`` contains the other split only, or several folders for the split.
    """
    for pattern in SPLIT_FOLDERS:
        parent = (folder / pattern.format(split=split)).parent
        if found := _split_folders(parent, split):
            if len(found) > 1 and found[0].name != split:
                raise RebarError(
                    f"{folder}: contains {found[0].name}/ and {found[1].name}/. Give the folder of the {split} images.",
                    code="source-split-ambiguous",
                )
            return found[0]
        if other := _split_folders(parent, other_split(split)):
            raise RebarError(
                f"{folder}: contains {other[0].relative_to(folder)}/, but no {split}/. Complete the dataset, or give "
                f"the folder of the {split} images.",
                code="source-split-not-found",
            )
    return folder


def _split_folders(parent: Path, split: str) -> list[Path]:
    """Return the folders in ``parent`` named like the split, in any case; the one named exactly so is the first."""
    try:
        names = [name for name in os.listdir(parent) if name.lower() in SPLIT_WORDS[split]]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [parent / name for name in sorted(names, key=lambda name: (name != split, name)) if (parent / name).is_dir()]


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
