"""Sources on disk: class folders, images with a list of labels, and betons."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from rebar.beton.format import MODE_RAW
from rebar.beton.reader import BetonFile
from rebar.errors import RebarError
from rebar.sources.byte_ranges import PackedNames, index_classes
from rebar.sources.labels import find_labels
from rebar.sources.layout import EXTENSIONS, is_hidden, is_image


class LabeledFiles:
    """The image files ``names`` below ``root``; ``labels`` are indices into ``class_names``."""

    def __init__(self, root: Path, class_names: Sequence[str], names: Iterable[str], labels: np.ndarray) -> None:
        self.root = root
        self.class_names = list(class_names)
        self._names = PackedNames(names)
        self._labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """Return the label of an image."""
        return int(self._labels[index])

    def read(self, index: int) -> bytes:
        """Return the content of the image file."""
        with open(self.name(index), "rb") as file:
            return file.read()

    def name(self, index: int) -> str:
        """Return the path of the image file."""
        return os.path.join(self.root, self._names[index])


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
    folders = [entry for entry in entries if entry.is_dir() and not is_hidden(entry.name)]
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


class BetonSource:
    """The samples of a .beton file in file order. Accepts files written by Rebar and by stock FFCV.

    Raises BetonError if the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = BetonFile.open(path)

    @property
    def class_names(self) -> Sequence[str]:
        """Class names from the sidecar; without a sidecar, the label numbers as text."""
        return self._file.class_names or [str(label) for label in range(self._file.num_classes)]

    def __len__(self) -> int:
        return len(self._file)

    def label(self, index: int) -> int:
        """Return the label of a sample."""
        return int(self._file.labels[index])

    def read(self, index: int) -> bytes:
        """Return the stored JPEG. Raw pixels are returned as a PPM file, without loss."""
        content = self._file.image_bytes(index).tobytes()
        if self._file.modes[index] == MODE_RAW:
            return b"P6 %d %d 255\n" % (self._file.widths[index], self._file.heights[index]) + content
        return content

    def name(self, index: int) -> str:
        """Return the path of the file and the number of the sample."""
        return f"{self._file.path}: sample {index}"
