"""Folders of images: one folder per class, or ILSVRC's validation images in one folder with a list of labels."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from rebar.errors import RebarError
from rebar.sources.files import EXTENSIONS, LabeledFiles, index_classes, is_image
from rebar.sources.labels import find_labels

Split = Literal["train", "val"]
SPLIT_WORDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
}
"""Words in the names of files and folders that identify a split."""
SPLIT_FOLDERS = ("{split}", "ILSVRC/Data/CLS-LOC/{split}", "Data/CLS-LOC/{split}")
"""Possible locations of a split in a dataset's folder. If none of them exists, the folder itself is the split."""

Name = TypeVar("Name", str, Path)


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


class ImageFolder(LabeledFiles):
    """The images at ``root/<class>/``, in the order of torchvision's ``ImageFolder``.

    Labels are the indices of the class folders in alphabetical order, which for ImageNet is the order of the synsets.
    Images in subfolders of a class folder belong to the class.

    Raises RebarError if the folder is missing or has no class folders, or if a class folder contains no image.
    """

    def __init__(self, root: Path | str) -> None:
        root = Path(root)
        try:
            folders, images = _list_folder(root)
            if not folders:
                raise _no_class_folders(root, images)
            names: list[str] = []
            counts: list[int] = []
            for folder in folders:
                found = sorted(_walk(folder.path, ""))
                names += [subfolder + name for subfolder, name in found]
                counts.append(len(found))
        except OSError as error:
            raise _unreadable(error, root) from None
        class_names = [folder.name for folder in folders]
        if 0 in counts:
            raise _empty_class_folders(root, class_names, counts)
        super().__init__(root, class_names, names, np.repeat(np.arange(len(counts)), counts))

    def name(self, index: int) -> str:
        """Return the path of the image file."""
        return os.path.join(self.root, self.class_names[self.label(index)], self._names[index])


def open_flat_folder(folder: Path, labels: str = "") -> LabeledFiles:
    """Open a folder of images without class folders, ordered by class, then name.

    ``labels`` is the path of a list of labels; by default, a list near the folder is used. Raises RebarError.
    """
    names = sorted(name for name in os.listdir(folder) if is_image(name))
    if not names:
        raise RebarError(f"{folder}: contains no images. Give a folder of images.", code="source-empty")
    found = find_labels(folder, labels)
    pairs = sorted(zip(found.look_up(names, str(folder)), names, strict=True))
    class_names = found.class_names
    label_numbers = index_classes([synset for synset, _ in pairs], class_names)
    return LabeledFiles(folder, class_names, (name for _, name in pairs), label_numbers)


def _list_folder(folder: Path | str) -> tuple[list["os.DirEntry[str]"], list["os.DirEntry[str]"]]:
    """Return the subfolders and the images of a folder, each sorted by name."""
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    folders = [entry for entry in entries if entry.is_dir()]
    images = [entry for entry in entries if is_image(entry.name) and not entry.is_dir()]
    return folders, images


def _walk(folder: str, subfolder: str) -> Iterator[tuple[str, str]]:
    """Yield (subfolder of the class folder, file name) of every image. Sorting these gives torchvision's order."""
    folders, images = _list_folder(folder)
    for entry in images:
        yield subfolder, entry.name
    for entry in folders:
        yield from _walk(entry.path, f"{subfolder}{entry.name}{os.sep}")


def _unreadable(error: OSError, root: Path) -> RebarError:
    path = error.filename or root
    if isinstance(error, FileNotFoundError):
        return RebarError(f"{path}: no such folder. Check the path.", code="source-not-found")
    if isinstance(error, NotADirectoryError):
        return RebarError(f"{path} is not a folder. Give a folder of class folders.", code="source-not-found")
    return RebarError(
        f"{path} cannot be read: {error.strerror}. Check its permissions and the disk.", code="source-unreadable"
    )


def _no_class_folders(root: Path, images: list["os.DirEntry[str]"]) -> RebarError:
    if not images:
        message = f"{root}: contains no class folders. Arrange the images as {root}/<class>/<image>."
        return RebarError(message, code="source-empty")
    return RebarError(
        f"{root}: {len(images)} images (such as {images[0].name}) are not in class folders, so their classes are "
        f"unknown. Move each into the folder of its class: {root}/<class>/<image>.",
        code="source-without-classes",
    )


def _empty_class_folders(root: Path, class_names: list[str], counts: list[int]) -> RebarError:
    empty = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    return RebarError(
        f"{root}: no images in class folder {shown}. Remove {'it' if len(empty) == 1 else 'them'}, or complete the "
        f"copy (extensions of images: {' '.join(EXTENSIONS)}).",
        code="source-empty-class",
    )
