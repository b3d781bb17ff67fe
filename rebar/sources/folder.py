"""ImageNet-1k's classes under one name, whichever source they come from.

Hugging Face calls them in words ("tench, Tinca tinca"), folders and archives by their synsets (n01440764). Their
numbers are the same, so files of either can be used together once the names are.

Training or validation: how folders and files are named after the two.

A folder of class folders of images, the layout of ImageNet and of torchvision's ``ImageFolder``.

ILSVRC's validation images as they come: in one folder, their classes in a list beside it.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from rebar.errors import RebarError
from rebar.sources.files import EXTENSIONS, LabelledFiles, is_image
from rebar.sources.labels import find_labels

SYNSETS_FILE = Path(__file__).with_name("imagenet_1k_synsets.txt")
_FIRST, _LAST = "tench", "toilet tissue"


def as_synsets(names: Sequence[str]) -> list[str]:
    """The synsets, where these are ImageNet-1k's names in words, in the order of the synsets; else the names."""
    if len(names) == 1000 and names[0].startswith(_FIRST) and names[-1].startswith(_LAST):
        return SYNSETS_FILE.read_text(encoding="ascii").split()
    return list(names)


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
    """The folder of a split's images: ``folder`` itself or one below it.

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


class ImageFolder(LabelledFiles):
    """The images under ``root/<class>/``, in torchvision's order.

    Labels number the class folders in the order of their names, which for ImageNet is the order of
    the synsets. Images in folders below a class folder belong to the class.

    Raises RebarError for a missing folder, one without class folders, and a class without images.
    """

    def __init__(self, root: Path | str) -> None:
        root = Path(root)
        try:
            folders, images = _split(root)
            if not folders:
                raise RebarError(_no_classes(root, images))
            names: list[str] = []
            counts: list[int] = []
            for folder in folders:
                found = sorted(_walk(folder.path, ""))
                names += [below + name for below, name in found]
                counts.append(len(found))
        except OSError as error:
            raise RebarError(f"{error.filename or root}: {_reason(error)}") from None
        class_names = [folder.name for folder in folders]
        if 0 in counts:
            raise RebarError(_empty_classes(root, class_names, counts))
        super().__init__(root, class_names, names, np.repeat(np.arange(len(counts)), counts))

    def name(self, index: int) -> str:
        """The path of the image's file."""
        return os.path.join(self.root, self.class_names[self.label(index)], self._names[index])


def _split(folder: Path | str) -> tuple[list["os.DirEntry[str]"], list["os.DirEntry[str]"]]:
    """The folders in a folder, and its images, each in the order of the names."""
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    folders = [entry for entry in entries if entry.is_dir()]
    images = [e for e in entries if is_image(e.name) and not e.is_dir()]
    return folders, images


def _walk(folder: str, below: str) -> Iterator[tuple[str, str]]:
    """(way from the class folder, file name) of every image; sorted, that is torchvision's order."""
    folders, images = _split(folder)
    for entry in images:
        yield below, entry.name
    for entry in folders:
        yield from _walk(entry.path, f"{below}{entry.name}{os.sep}")


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such folder"
    if isinstance(error, NotADirectoryError):
        return "is not a folder"
    return f"cannot be read: {error.strerror}"


def _no_classes(root: Path, images: list["os.DirEntry[str]"]) -> str:
    if not images:
        return f"{root}: holds no class folders; expected {root}/<class>/<image>"
    return (
        f"{root}: {len(images)} images (such as {images[0].name}) lie directly in it, so their classes "
        f"are unknown; move each into a folder of its class: {root}/<class>/<image>"
    )


def _empty_classes(root: Path, class_names: list[str], counts: list[int]) -> str:
    empty = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    return (
        f"{root}: no images in class folder {shown}; remove {'it' if len(empty) == 1 else 'them'} or "
        f"complete the copy (images end in {' '.join(EXTENSIONS)})"
    )


def open_flat_folder(folder: Path, labels: str = "") -> LabelledFiles:
    """The images in ``folder``, ordered by class and name as they would be in class folders.

    ``labels`` is the list of their classes, else one near the folder is taken. Raises RebarError.
    """
    names = sorted(name for name in os.listdir(folder) if is_image(name))
    if not names:
        raise RebarError(f"{folder}: holds no images")
    found = find_labels(folder, labels)
    synsets, class_names = found.of(names, str(folder)), found.class_names
    pairs = sorted(zip(synsets, names, strict=True))
    numbers = {synset: number for number, synset in enumerate(class_names)}
    return LabelledFiles(
        folder, class_names, (name for _, name in pairs), np.array([numbers[synset] for synset, _ in pairs])
    )
