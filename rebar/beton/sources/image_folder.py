"""A folder of class folders of pictures, the layout of ImageNet and of torchvision's ``ImageFolder``."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rebar.beton.sources.labelled_files import EXTENSIONS, LabelledFiles, is_picture
from rebar.errors import RebarError


class ImageFolder(LabelledFiles):
    """The pictures under ``root/<class>/``, in torchvision's order.

    Labels number the class folders in the order of their names, which for ImageNet is the order of
    the synsets. Pictures in folders below a class folder belong to the class.

    Raises RebarError for a missing folder, one without class folders, and a class without pictures.
    """

    def __init__(self, root: Path | str) -> None:
        root = Path(root)
        try:
            folders, pictures = _split(root)
            if not folders:
                raise RebarError(_no_classes(root, pictures))
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
        """The path of the picture's file."""
        return os.path.join(self.root, self.class_names[self.label(index)], self._names[index])


def _split(folder: Path | str) -> tuple[list["os.DirEntry[str]"], list["os.DirEntry[str]"]]:
    """The folders in a folder, and its pictures, each in the order of the names."""
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    folders = [entry for entry in entries if entry.is_dir()]
    pictures = [e for e in entries if is_picture(e.name) and not e.is_dir()]
    return folders, pictures


def _walk(folder: str, below: str) -> Iterator[tuple[str, str]]:
    """(way from the class folder, file name) of every picture; sorted, that is torchvision's order."""
    folders, pictures = _split(folder)
    for entry in pictures:
        yield below, entry.name
    for entry in folders:
        yield from _walk(entry.path, f"{below}{entry.name}{os.sep}")


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such folder"
    if isinstance(error, NotADirectoryError):
        return "is not a folder"
    return f"cannot be read: {error.strerror}"


def _no_classes(root: Path, pictures: list["os.DirEntry[str]"]) -> str:
    if not pictures:
        return f"{root}: holds no class folders; expected {root}/<class>/<picture>"
    return (
        f"{root}: {len(pictures)} pictures (such as {pictures[0].name}) lie directly in it, so their classes "
        f"are unknown; move each into a folder of its class: {root}/<class>/<picture>"
    )


def _empty_classes(root: Path, class_names: list[str], counts: list[int]) -> str:
    empty = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    return (
        f"{root}: no pictures in class folder {shown}; remove {'it' if len(empty) == 1 else 'them'} or "
        f"complete the copy (pictures end in {' '.join(EXTENSIONS)})"
    )
