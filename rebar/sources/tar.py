"""Images in a tar, read without unpacking it: ILSVRC's original archives, or a tar of class folders."""

import functools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from rebar.cli import scan_bar
from rebar.errors import RebarError
from rebar.sources.byte_ranges import ByteRanges, index_classes
from rebar.sources.labels import find_labels
from rebar.sources.layout import HIDDEN, NOT_AN_IMAGE, OUTSIDE, SPLIT_WORDS, has_hidden_part, is_image
from rebar.sources.tar_index import index_tars
from rebar.sources.tar_members import Member, list_members

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


def check_uncompressed(path: Path) -> None:
    """Raise RebarError for a compressed tar, which does not allow random access to its members."""
    if path.name.lower().endswith((*COMPRESSED, ".zip")):
        raise RebarError(
            f"{path} is compressed, which does not allow random access to its images. Unpack it and give the folder, "
            "or decompress it to a .tar (gunzip, unxz, zstd -d).",
            code="tar-compressed",
        )


def ilsvrc_archive(folder: Path, split: str) -> Path:
    """Return the path of a split's original archive in a folder of downloads."""
    return folder / f"ILSVRC2012_img_{split}.tar"


def open_tar(path: Path, split: str, labels: str = "") -> ByteRanges:
    """Open a tar that contains one tar per class, class folders, or ILSVRC's validation images in one folder.

    Images are ordered by class, then name, as in :class:`~rebar.sources.files.ImageFolder`. ``labels`` is the path
    of a list of labels for images without class folders. Raises RebarError.
    """
    check_uncompressed(path)
    omitted: Counter[str] = Counter()
    images, others = _list_images(path, omitted)
    if images:
        omitted[NOT_AN_IMAGE] += len(others)
        if _is_flat(images):
            found = find_labels(path, labels)
            synsets = found.look_up([member.name for member in images], str(path))
            return _sort_by_class(path, list(zip(synsets, images, strict=True)), omitted, found.class_names)
        return _sort_by_class(path, _split_by_class(path, images, split, omitted), omitted)
    inner_tars = sorted(
        (other for other in others if other.name.endswith(".tar")), key=lambda tar: (_class_of_tar(tar), tar.name)
    )
    if not inner_tars:
        raise RebarError(
            f"{path}: none of its {len(others):,} files is an image or a tar. Give a tar of images.",
            code="source-empty",
        )
    omitted[NOT_AN_IMAGE] += len(others) - len(inner_tars)
    index = index_tars([path], inner_tars, functools.partial(_read_inner_tar, path), settings="tars of classes")
    return replace(index, omitted=dict(omitted + Counter(index.omitted)))


def _list_images(path: Path, omitted: Counter[str]) -> tuple[list[Member], list[Member]]:
    """Return the images and the other files of a tar. Hidden files are counted in ``omitted``."""
    images: list[Member] = []
    others: list[Member] = []
    with scan_bar(f"indexing {path.name}", path.stat().st_size, "B") as bar:
        for member in list_members(path, omitted=omitted):
            if has_hidden_part(member.name):
                omitted[HIDDEN] += 1
            else:
                (images if is_image(member.name) else others).append(member)
            bar.update(member.offset + member.size - bar.n)
    return images, others


def _class_of_tar(inner: Member) -> str:
    return PurePosixPath(inner.name).stem


def _read_inner_tar(path: Path, inner: Member) -> ByteRanges:
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


def _split_by_class(
    path: Path, images: Sequence[Member], split: str, omitted: Counter[str]
) -> list[tuple[str, Member]]:
    """Return (class name, image) for the images of the split.

    The class is the folder below the split's folder, or the folder of the image if the tar has no folder per split.
    """
    by_split: dict[str, list[tuple[str, Member]]] = {"train": [], "val": [], "": []}
    for member in images:
        folders = PurePosixPath(member.name).parts[:-1]
        for name, spellings in SPLIT_WORDS.items():
            depth = next((i for i, folder in enumerate(folders[:-1]) if folder.lower() in spellings), None)
            if depth is not None:
                by_split[name].append((folders[depth + 1], member))
                break
        else:
            by_split[""].append((folders[-1] if folders else "", member))
    if by_split["train"] or by_split["val"]:
        if not by_split[split]:
            raise RebarError(
                f"{path}: contains the folder of the other split, but no {split}/. Give the tar of the {split} split.",
                code="source-split-not-found",
            )
        omitted[OUTSIDE] += len(by_split[""])
        return by_split[split]
    return by_split[""]


def _sort_by_class(
    path: Path,
    images: Iterable[tuple[str, Member]],
    omitted: Mapping[str, int],
    class_names: Sequence[str] | None = None,
) -> ByteRanges:
    """Return a source of the images, sorted by class, then name; classes are sorted by name unless given."""
    images = sorted(images)
    names = class_names or sorted({name for name, _ in images})
    duplicates = [name for name, count in Counter(member.name for _, member in images).items() if count > 1]
    if duplicates:
        raise RebarError(
            f"{path}: contains {duplicates[0]} twice, and {len(duplicates) - 1} more duplicates. Pack it again.",
            code="tar-invalid",
        )
    labels = index_classes([name for name, _ in images], names)
    return ByteRanges.from_members(path, names, [member for _, member in images], labels, omitted)
