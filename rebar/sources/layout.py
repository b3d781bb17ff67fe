"""The rules by which names identify images, splits and classes, the same for every kind of source."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rebar.cli import and_others, count, display_name, warn
from rebar.errors import RebarError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File extensions of images, compared case-insensitively. The list is torchvision's ``IMG_EXTENSIONS``."""
Split = Literal["train", "val"]
SPLIT_WORDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
}
"""Words in the names of files and folders that identify a split."""
ALL_SPLIT_WORDS = {*SPLIT_WORDS["train"], *SPLIT_WORDS["val"], "test", "testing"}
HIDDEN = "hidden file or folder"
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")  # of macOS's archives and of Synology's file servers
NOT_AN_IMAGE = "file that is not an image"
OUTSIDE_CLASS_FOLDERS = "image outside the class folders"
"""Kinds of files that sources omit and count."""
SPLIT_PARENTS = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
"""Folders of a dataset that may contain the folders of the splits. Otherwise the dataset's folder is the split."""
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
"""Names of a folder that contains all images of a split and is not a class, as in tiny-imagenet-200's ``val/``."""

Name = TypeVar("Name", str, Path)


def is_image(name: str) -> bool:
    """Return whether a relative path has the extension of an image, and neither it nor a folder in it is hidden."""
    return name.lower().endswith(EXTENSIONS) and not has_hidden_part(name)


def has_hidden_part(name: str) -> bool:
    """Return whether a relative path, or a folder in it, is hidden."""
    may_be_hidden = name.startswith(".") or "/." in name or any(folder in name for folder in _SYSTEM_FOLDERS)
    return may_be_hidden and any(is_hidden(part) for part in name.split("/"))


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, such as ``.ipynb_checkpoints``, macOS's ``._name`` and ``@eaDir``."""
    return (name.startswith(".") and name not in (".", "..")) or name in _SYSTEM_FOLDERS


def other_split(split: str) -> str:
    """Return ``train`` for ``val``, and ``val`` for ``train``."""
    return "val" if split == "train" else "train"


class FolderTree(Protocol):
    """Folders on disk, in a tar, or below an S3 prefix. Paths are relative to the root, which is the empty path."""

    def folders(self, path: str) -> list[str]:
        """Return the names of the folders in a folder that are not hidden, sorted; none if it does not exist."""
        ...

    def has_images(self, path: str) -> bool:
        """Return whether images are directly in a folder."""
        ...


class DiskTree:
    """The folders below a folder on disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folders(self, path: str) -> list[str]:
        """Return the names of the folders in a folder that are not hidden, sorted; none if it does not exist."""
        try:
            with os.scandir(self._root / path) as scan:
                return sorted(entry.name for entry in scan if not is_hidden(entry.name) and entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def has_images(self, path: str) -> bool:
        """Return whether images are directly in a folder."""
        try:
            with os.scandir(self._root / path) as scan:
                return any(is_image(entry.name) and not entry.is_dir() for entry in scan)
        except (FileNotFoundError, NotADirectoryError):
            return False


def find_split(folder: Path, split: str) -> Path:
    """Return the folder of a split's images on disk; see :func:`find_split_path`."""
    path = find_split_path(DiskTree(folder), split, str(folder), folder.resolve().name)
    return folder / path if path else folder


def find_split_path(tree: FolderTree, split: str, location: str, name: str) -> str:
    """Return the path of a split's images: a folder in the tree, or the root, whose own name is ``name``.

    If all images of the split are in a folder such as ``images``, that folder is returned. Raises RebarError if the
    tree contains another split only, if several folders may be the split, or if a folder named like a split may be a
    class; the messages contain ``location``.
    """
    path = _find_split_folder(tree, split, location, name)
    inner = tree.folders(path)
    if len(inner) == 1 and inner[0].lower() in IMAGE_FOLDERS and tree.has_images(join(path, inner[0])):
        return join(path, inner[0])
    return path


def _find_split_folder(tree: FolderTree, split: str, location: str, name: str) -> str:
    for parent in SPLIT_PARENTS:
        names = tree.folders(parent)
        found = sorted((n for n in names if n.lower() in SPLIT_WORDS[split]), key=lambda n: (n != split, n))
        other = [n for n in names if n.lower() in SPLIT_WORDS[other_split(split)]]
        if (found or other) and not parent and _are_classes(tree, names, location, name):
            return ""
        if len(found) > 1 and found[0] != split:
            raise RebarError(
                f"{location}: contains {found[0]}/ and {found[1]}/. Pass the folder of the {split} images.",
                code="source-split-ambiguous",
            )
        if found:
            return join(parent, found[0])
        if other:
            raise RebarError(
                f"{location}: contains {join(parent, other[0])}/, but no {split}/. Complete the dataset, or pass the "
                f"folder of the {split} images.",
                code="source-split-not-found",
            )
    return ""


def _are_classes(tree: FolderTree, names: Sequence[str], location: str, name: str) -> bool:
    """Return whether the folders named like splits are classes, such as CIFAR-100's ``train``.

    They are if they and other folders contain images, and the folder that contains them is itself named like a split.
    Raises RebarError if it is not.
    """
    like_splits = [folder for folder in names if folder.lower() in ALL_SPLIT_WORDS]
    if not all(tree.has_images(folder) for folder in like_splits):
        return False
    sibling = next((folder for folder in names if folder not in like_splits and tree.has_images(folder)), None)
    if sibling is None:
        return False
    if name.lower() in ALL_SPLIT_WORDS:
        return True
    raise RebarError(
        f"{location}: {like_splits[0]}/ is ambiguous: it could be a split or a class, "
        f"because it contains images, and so does {sibling}/. "
        "Move all class folders into a folder named train/ or val/, or pass the folder of the split.",
        code="source-split-ambiguous",
    )


def join(*parts: str) -> str:
    """Join the parts of a path that are not empty."""
    return "/".join(part for part in parts if part)


def check_class_folders(
    location: str, class_names: Sequence[str], counts: Sequence[int], outside: Sequence[str]
) -> None:
    """Raise RebarError if a class has no images, or if most images are ``outside`` of the class folders."""
    if len(outside) > sum(counts):
        raise without_classes_error(location, outside)
    empty = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    if empty:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise RebarError(
            f"{location}: no images in class folder {shown}. Remove {'it' if len(empty) == 1 else 'them'}, or complete "
            f"the copy (extensions of images: {' '.join(EXTENSIONS)}).",
            code="source-empty-class",
        )


def without_classes_error(location: str, images: Sequence[str]) -> RebarError:
    """Return the error of ``images`` that are not in class folders."""
    return RebarError(
        f"{location}: contains {count(len(images), 'image')} (such as {images[0]}) outside class folders, so of "
        f"unknown class. Move each into the folder of its class: {location}/<class>/<image>.",
        code="source-without-classes",
    )


def warn_about_classes(location: str, class_names: Sequence[str]) -> None:
    """Warn if there is only one class, or if classes are named like splits."""
    if len(class_names) == 1:
        warn(
            f"{location} has only one class, {display_name(class_names[0])}; is this the folder with the class folders?"
        )
    like_splits = [name for name in class_names if name.lower() in ALL_SPLIT_WORDS]
    if like_splits:
        warn(
            f"{location} has a class named {' and '.join(like_splits)}, like a split; is this the folder of one split?"
        )


def warn_about_numbers(location: str, class_names: Sequence[str], labels: NDArray[np.int64]) -> None:
    """Warn how classes are numbered if their names are numbers, but differ from the labels or do not start at 0.

    ``labels`` are those of all images.
    """
    if not all(name.isdecimal() for name in class_names):
        return
    if [int(name) for name in class_names] != list(range(len(class_names))):
        shown = ", ".join(f"{name} is label {label}" for label, name in enumerate(class_names[:3]))
        warn(f"{location} has classes named by numbers, which are labelled in alphabetical order: {shown}")
    elif unused := np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0).tolist():
        missing = and_others(str(unused[0]), len(unused) - 1, "number")
        warn(
            f"{location}: its labels are numbers from {labels.min()} to {labels.max()}, without {missing}. They are "
            f"kept, so there are {len(class_names):,} classes, of which {len(unused):,} have no images"
        )


def filter_split(names: Sequence[Name], split: str, location: str) -> list[Name]:
    """Return the names that mention the split, or all of them if no name mentions any split.

    Raises RebarError if the names mention other splits only; the message contains ``location``.
    """
    matching = [name for name in names if _mentions(name, SPLIT_WORDS[split])]
    if matching or not any(_mentions(name, (*SPLIT_WORDS[other_split(split)], "test")) for name in names):
        return matching or list(names)
    raise RebarError(
        f"{location}: contains files of another split, such as {names[0]}, but none of {split}. Pass the files of the "
        f"{split} split.",
        code="source-split-not-found",
    )


def _mentions(name: str | Path, words: Sequence[str]) -> bool:
    text = name.name if isinstance(name, Path) else name
    return bool(set(re.split(r"[^a-z]+", text.lower())) & set(words))


def index_classes(names: Sequence[object], class_names: Sequence[str]) -> np.ndarray:
    """Return the label of each class name, int32 ``[n]``: its index in ``class_names``."""
    labels: dict[object, int] = {name: label for label, name in enumerate(class_names)}
    return np.array([labels[name] for name in names], np.int32)


class PackedNames:
    """A list of names in a single bytes object: compact in memory, and cheap to pickle for worker processes."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.content = b"".join(encoded)
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    @staticmethod
    def from_arrays(content: bytes, ends: np.ndarray) -> "PackedNames":
        """Return the names that end at bytes ``ends`` (int64 ``[n]``) of ``content``."""
        names = PackedNames(())
        names.content, names.ends = content, ends
        return names

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.content[start : int(self.ends[index])])
