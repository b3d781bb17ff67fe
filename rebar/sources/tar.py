"""Images in a tar, read without unpacking it: ILSVRC's original archives, or a tar of class folders."""

import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rebar.errors import RebarError
from rebar.sources.files import ByteRange, ByteRanges, index_classes
from rebar.sources.labels import find_labels
from rebar.sources.layout import SPLIT_WORDS, is_image

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
NUM_THREADS = 16
"""Threads that list inner tars concurrently. Disk latency limits this work, not the CPU."""
_BLOCK_SIZE = 512  # bytes; two zero blocks end a tar


class Member(NamedTuple):
    """A regular file in a tar: ``size`` bytes from byte ``offset`` of the tar file."""

    name: str
    offset: int
    size: int


class _FileRange:
    """A byte range of an open file as a read-only file object for ``tarfile``. Several threads may share the file."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self._descriptor, self._start, self._size = descriptor, start, size
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + position
        return self._position

    def read(self, size: int = -1) -> bytes:
        remaining = max(0, self._size - self._position)
        count = remaining if size < 0 else min(size, remaining)
        content = os.pread(self._descriptor, count, self._start + self._position)
        self._position += len(content)
        return content


def list_members(path: Path, within: Member | None = None) -> Iterator[Member]:
    """Yield the regular files of a tar, in tar order; with ``within``, of the inner tar that is this member.

    Folders, links, and macOS metadata files (``._name``) are skipped. Raises RebarError if the file cannot be read,
    is not a tar, or is truncated.
    """
    name = f"{path}:{within.name}" if within else str(path)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise RebarError(
            f"{path} cannot be read: {error.strerror}. Check its permissions and the disk.", code="source-unreadable"
        ) from None
    try:
        start, size = (within.offset, within.size) if within else (0, os.fstat(descriptor).st_size)
        view = _FileRange(descriptor, start, size)
        with tarfile.open(fileobj=view, mode="r:") as tar:  # type: ignore[call-overload]
            while (entry := tar.next()) is not None:
                if entry.isreg() and not os.path.basename(entry.name).startswith("._"):
                    yield Member(entry.name.removeprefix("./"), start + entry.offset_data, entry.size)
                tar.members.clear()  # tarfile keeps all members in memory otherwise
            view.seek(tar.offset)
            if view.read(_BLOCK_SIZE) != bytes(_BLOCK_SIZE):
                raise tarfile.ReadError("the end-of-archive marker is missing")
    except (tarfile.TarError, ValueError, OSError) as error:
        raise RebarError(
            f"{name} is not a tar, or is truncated ({error}). Download or copy it again.", code="tar-invalid"
        ) from None
    finally:
        os.close(descriptor)


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
    members = list(list_members(path))
    if images := [member for member in members if is_image(member.name)]:
        if _is_flat(images):
            found = find_labels(path, labels)
            synsets = found.look_up([member.name for member in images], str(path))
            return _sort_by_class(path, list(zip(synsets, images, strict=True)), found.class_names)
        return _sort_by_class(path, _split_by_class(path, images, split))
    inner_tars = [member for member in members if member.name.endswith(".tar")]
    if not inner_tars:
        raise RebarError(
            f"{path}: none of its {len(members):,} files is an image or a tar. Give a tar of images.",
            code="source-empty",
        )
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        contents = list(pool.map(lambda member: list(list_members(path, member)), inner_tars))
    classes = []
    for inner, files in zip(inner_tars, contents, strict=True):
        class_name = PurePosixPath(inner.name).stem
        images = [member for member in files if is_image(member.name)]
        if not images:
            raise RebarError(
                f"{path}:{inner.name}: contains no images. Download the archive again.", code="source-empty-class"
            )
        classes += [(class_name, member._replace(name=f"{inner.name}/{member.name}")) for member in images]
    return _sort_by_class(path, classes)


def _is_flat(images: Sequence[Member]) -> bool:
    """Return whether all images are in one folder that is not a class folder."""
    folders = {os.path.dirname(member.name) for member in images}
    return len(folders) == 1 and (folders == {""} or PurePosixPath(images[0].name).name.startswith("ILSVRC2012_val_"))


def _split_by_class(path: Path, images: Sequence[Member], split: str) -> list[tuple[str, Member]]:
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
        return by_split[split]
    return by_split[""]


def _sort_by_class(
    path: Path, images: Iterable[tuple[str, Member]], class_names: Sequence[str] | None = None
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
    ranges = (ByteRange(0, *member) for _, member in images)
    return ByteRanges.from_ranges([path], names, ranges, index_classes([name for name, _ in images], names))
