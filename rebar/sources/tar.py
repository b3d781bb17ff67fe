"""Images in a tar, read without unpacking it: ILSVRC's original archives, or a tar of class folders."""

import functools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from rebar.cli import and_others, progress_bar
from rebar.errors import RebarError
from rebar.sources.labels import find_labels
from rebar.sources.layout import (
    ALL_SPLIT_WORDS,
    HIDDEN,
    NOT_AN_IMAGE,
    OUTSIDE_CLASS_FOLDERS,
    check_class_folders,
    find_split_path,
    has_hidden_part,
    index_classes,
    is_image,
    join,
)
from rebar.sources.tar_index import ByteRanges, cached_index, read_tars
from rebar.sources.tar_members import Member, compressed_error, list_members

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


def check_uncompressed(path: Path) -> None:
    """Raise RebarError for a compressed tar, as its name says. ``list_members`` checks the content."""
    if path.name.lower().endswith((*COMPRESSED, ".zip")):
        raise compressed_error(str(path))


def ilsvrc_archive(folder: Path, split: str) -> Path:
    """Return the path of a split's original archive in a folder of downloads."""
    return folder / f"ILSVRC2012_img_{split}.tar"


def open_tar(path: Path, split: str, labels: str = "") -> ByteRanges:
    """Open a tar that contains one tar per class, class folders, or ILSVRC's validation images in one folder.

    Images are ordered by class, then name, as in :class:`~rebar.sources.files.ImageFolder`. ``labels`` is the path
    of a list of labels for images without class folders. Raises RebarError.
    """
    check_uncompressed(path)
    index = cached_index([path], f"tar {split}", lambda: _read_tar(path, split))
    if index.class_names:
        return index
    found = find_labels(path, labels)
    synsets = found.look_up([index.names[number] for number in range(len(index))], str(path))
    class_labels = index_classes(synsets, found.class_names)
    return replace(
        index.take(np.argsort(class_labels, kind="stable")), class_names=found.class_names, labels=np.sort(class_labels)
    )


def _read_tar(path: Path, split: str) -> ByteRanges:
    """Return the images of the split, sorted by class, then name. Images without class folders have no class names."""
    omitted: Counter[str] = Counter()
    images, others = _list_images(path, omitted)
    if images:
        omitted[NOT_AN_IMAGE] += len(others)
        classes, flat = ([], images) if _is_flat(images) else _split_by_class(path, images, split, omitted)
        if classes:
            return _sort_by_class(path, classes, omitted)
        return replace(_sort_by_class(path, [("", image) for image in flat], omitted), class_names=[])
    class_tars = sorted(
        (other for other in others if other.name.endswith(".tar")), key=lambda tar: (_class_of_tar(tar), tar.name)
    )
    if not class_tars:
        raise RebarError(
            f"{path}: none of its {len(others):,} files is an image or a tar. Pass a tar of images.",
            code="source-empty",
        )
    omitted[NOT_AN_IMAGE] += len(others) - len(class_tars)
    index = read_tars([path], class_tars, functools.partial(_read_class_tar, path))
    return replace(index, omitted=dict(omitted + Counter(index.omitted)))


def _list_images(path: Path, omitted: Counter[str]) -> tuple[list[Member], list[Member]]:
    """Return the images and the other files of a tar. Hidden files are counted in ``omitted``."""
    images: list[Member] = []
    others: list[Member] = []
    with progress_bar(f"indexing {path.name}", path.stat().st_size, "B") as bar:
        for member in list_members(path, omitted=omitted):
            if has_hidden_part(member.name):
                omitted[HIDDEN] += 1
            else:
                (images if is_image(member.name) else others).append(member)
            bar.update(member.offset + member.size - bar.n)
    return images, others


def _class_of_tar(inner: Member) -> str:
    return PurePosixPath(inner.name).stem


def _read_class_tar(path: Path, inner: Member) -> ByteRanges:
    """Return the images of a class, sorted by name. Runs in worker processes."""
    omitted: Counter[str] = Counter()
    images = []
    for member in list_members(path, inner, omitted):
        if is_image(member.name):
            images.append((_class_of_tar(inner), member._replace(name=f"{inner.name}/{member.name}")))
        else:
            omitted[HIDDEN if has_hidden_part(member.name) else NOT_AN_IMAGE] += 1
    if not images:
        raise RebarError(
            f"{path}:{inner.name}: contains no images. Download the archive again.", code="source-empty-class"
        )
    return _sort_by_class(path, images, omitted)


def _is_flat(images: Sequence[Member]) -> bool:
    """Return whether all images are in one folder that is not a class folder."""
    folders = {os.path.dirname(member.name) for member in images}
    return len(folders) == 1 and (folders == {""} or PurePosixPath(images[0].name).name.startswith("ILSVRC2012_val_"))


class _ArchiveTree:
    """The folders that contain the given images."""

    def __init__(self, images: Iterable[Member]) -> None:
        self._with_images = {os.path.dirname(image.name) for image in images}
        self._folders: dict[str, set[str]] = {}
        for path in self._with_images:
            while path and os.path.basename(path) not in self._folders.setdefault(os.path.dirname(path), set()):
                self._folders[os.path.dirname(path)].add(os.path.basename(path))
                path = os.path.dirname(path)

    def folders(self, path: str) -> list[str]:
        """Return the names of the folders in a folder, sorted."""
        return sorted(self._folders.get(path, ()))

    def has_images(self, path: str) -> bool:
        """Return whether images are directly in a folder."""
        return path in self._with_images

    def below(self, path: str) -> "_ArchiveTree":
        """Return the tree of a folder."""
        tree = _ArchiveTree(())
        tree._with_images = {p[len(path) + 1 :] for p in self._with_images if f"{p}/".startswith(f"{path}/")}
        tree._folders = {p[len(path) + 1 :]: f for p, f in self._folders.items() if f"{p}/".startswith(f"{path}/")}
        return tree


def _split_by_class(
    path: Path, images: Sequence[Member], split: str, omitted: Counter[str]
) -> tuple[list[tuple[str, Member]], list[Member]]:
    """Return (class name, image) for the images of the split; if none is in a class folder, the images instead.

    The rules are those of folders on disk. Folders at the start of all paths, such as ``imagenette2/``, are skipped.
    """
    tree, root = _ArchiveTree(images), ""
    while len(names := tree.folders("")) == 1 and not tree.has_images("") and tree.folders(names[0]):
        if names[0].lower() in ALL_SPLIT_WORDS:
            break
        tree, root = tree.below(names[0]), join(root, names[0])
    found = find_split_path(tree, split, str(path), os.path.basename(root) or path.stem)
    prefix = join(root, found) + "/" if root or found else ""
    classes: list[tuple[str, Member]] = []
    outside: list[Member] = []
    for image in images:
        if image.name.startswith(prefix):
            class_name, slash, _ = image.name[len(prefix) :].partition("/")
            if slash:
                classes.append((class_name, image))
            else:
                outside.append(image)
        elif not ALL_SPLIT_WORDS.intersection(image.name.lower().split("/")[:-1]):
            omitted[OUTSIDE_CLASS_FOLDERS] += 1
    if not classes:
        return [], outside
    check_class_folders(str(path), ["images"], [len(classes)], [image.name for image in outside])
    omitted[OUTSIDE_CLASS_FOLDERS] += len(outside)
    return classes, []


def _sort_by_class(path: Path, images: Iterable[tuple[str, Member]], omitted: Mapping[str, int]) -> ByteRanges:
    """Return a source of the images, sorted by class, then name; classes are sorted by name."""
    images = sorted(images)
    names = sorted({name for name, _ in images})
    duplicates = [name for name, count in Counter(member.name for _, member in images).items() if count > 1]
    if duplicates:
        raise RebarError(
            f"{path}: contains {and_others(duplicates[0], len(duplicates) - 1, 'name')} twice. Pack it again.",
            code="tar-invalid",
        )
    labels = index_classes([name for name, _ in images], names)
    return ByteRanges.from_members(path, names, [member for _, member in images], labels, omitted)
