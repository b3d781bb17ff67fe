"""Sources on disk: class folders, images with a list of labels, and betons."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from rebar.beton.format import MODE_RAW
from rebar.beton.reader import BetonFile
from rebar.cli import progress_bar
from rebar.errors import RebarError
from rebar.sources.labels import find_labels
from rebar.sources.layout import (
    HIDDEN,
    NOT_AN_IMAGE,
    OUTSIDE_CLASS_FOLDERS,
    PackedNames,
    check_class_folders,
    index_classes,
    is_hidden,
    is_image,
    without_classes_error,
)


class LabeledFiles:
    """The image files ``names`` below ``root``; ``labels`` are indices into ``class_names``."""

    def __init__(
        self,
        root: Path,
        class_names: Sequence[str],
        names: Iterable[str],
        labels: np.ndarray,
        omitted: Mapping[str, int],
    ) -> None:
        self.root = root
        self.class_names = list(class_names)
        self.omitted = dict(omitted)
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
        omitted: Counter[str] = Counter()
        try:
            folders, outside = _list_folder(root, omitted)
            if not folders:
                raise _no_class_folders(root, outside)
            names: list[str] = []
            counts: list[int] = []
            with progress_bar(f"scanning {root}", len(folders), "classes") as bar:
                for folder in folders:
                    found = sorted(_walk(folder.path, "", omitted))
                    names += [subfolder + name for subfolder, name in found]
                    counts.append(len(found))
                    bar.update()
        except OSError as error:
            raise _unreadable(error, root) from None
        class_names = [folder.name for folder in folders]
        check_class_folders(str(root), class_names, counts, [image.name for image in outside])
        omitted[OUTSIDE_CLASS_FOLDERS] += len(outside)
        super().__init__(root, class_names, names, np.repeat(np.arange(len(counts)), counts), omitted)

    def name(self, index: int) -> str:
        """Return the path of the image file."""
        return os.path.join(self.root, self.class_names[self.label(index)], self._names[index])


def open_flat_folder(folder: Path, labels: str = "") -> LabeledFiles:
    """Open a folder of images without class folders, ordered by class, then name.

    ``labels`` is the path of a list of labels; by default, a list near the folder is used. Raises RebarError.
    """
    omitted: Counter[str] = Counter()
    names = [image.name for image in _list_folder(folder, omitted)[1]]
    if not names:
        raise RebarError(f"{folder}: contains no images. Pass a folder of images.", code="source-empty")
    found = find_labels(folder, labels)
    pairs = sorted(zip(found.look_up(names, str(folder)), names, strict=True))
    class_names = found.class_names
    label_numbers = index_classes([synset for synset, _ in pairs], class_names)
    return LabeledFiles(folder, class_names, (name for _, name in pairs), label_numbers, omitted)


def _list_folder(
    folder: Path | str, omitted: Counter[str]
) -> tuple[list["os.DirEntry[str]"], list["os.DirEntry[str]"]]:
    """Return the subfolders and the images of a folder, each sorted by name. Other entries are counted."""
    folders: list[os.DirEntry[str]] = []
    images: list[os.DirEntry[str]] = []
    with os.scandir(folder) as scan:
        for entry in sorted(scan, key=lambda entry: entry.name):
            if is_hidden(entry.name):
                omitted[HIDDEN] += 1
            elif entry.is_dir():
                folders.append(entry)
            elif is_image(entry.name):
                images.append(entry)
            else:
                omitted[NOT_AN_IMAGE] += 1
    return folders, images


def _walk(folder: str, subfolder: str, omitted: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield (subfolder of the class folder, file name) of every image. Sorting these gives torchvision's order."""
    folders, images = _list_folder(folder, omitted)
    for entry in images:
        yield subfolder, entry.name
    for entry in folders:
        yield from _walk(entry.path, f"{subfolder}{entry.name}{os.sep}", omitted)


def _unreadable(error: OSError, root: Path) -> RebarError:
    path = error.filename or root
    if isinstance(error, FileNotFoundError):
        return RebarError(f"{path}: no such folder. Check the path.", code="source-not-found")
    if isinstance(error, NotADirectoryError):
        return RebarError(f"{path} is not a folder. Pass a folder of class folders.", code="source-not-found")
    return RebarError(
        f"{path} cannot be read: {error.strerror}. Check its permissions and the disk.", code="source-unreadable"
    )


def _no_class_folders(root: Path, images: list["os.DirEntry[str]"]) -> RebarError:
    if not images:
        message = f"{root}: contains no class folders. Arrange the images as {root}/<class>/<image>."
        return RebarError(message, code="source-empty")
    return without_classes_error(str(root), [image.name for image in images])


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
