"""Where the members of a tar lie in it, so that they are read without unpacking.

Images in a tar that is not unpacked: ILSVRC's own archives, or a packed folder of class folders.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rebar.errors import RebarError
from rebar.sources.files import ByteRanges, Range, is_image
from rebar.sources.folder import SPLIT_WORDS
from rebar.sources.labels import find_labels

BLOCK = 512
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


class Member(NamedTuple):
    """A regular file of a tar: ``size`` bytes from ``offset`` of the whole file on."""

    name: str
    offset: int
    size: int


class _Slice:
    """A part of a file, as the file object that ``tarfile`` wants. Threads may have one each."""

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
        left = max(0, self._size - self._position)
        wanted = left if size < 0 else min(size, left)
        content = os.pread(self._descriptor, wanted, self._start + self._position)
        self._position += len(content)
        return content


def list_members(path: Path, within: Member | None = None) -> Iterator[Member]:
    """The regular files of a tar, in its order; ``within``: of a tar that is itself a member of it.

    Folders, links, and the files that macOS adds (``._name``) are left out. Raises RebarError for a file that
    cannot be read, is no tar, or is cut short.
    """
    name = f"{path}:{within.name}" if within else str(path)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise RebarError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        start, size = (within.offset, within.size) if within else (0, os.fstat(descriptor).st_size)
        view = _Slice(descriptor, start, size)
        with tarfile.open(fileobj=view, mode="r:") as tar:  # type: ignore[call-overload]
            while (entry := tar.next()) is not None:
                if entry.isreg() and not os.path.basename(entry.name).startswith("._"):
                    yield Member(entry.name.removeprefix("./"), start + entry.offset_data, entry.size)
                tar.members.clear()  # else it keeps all of them
            view.seek(tar.offset)
            if view.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError("it has no end")
    except (tarfile.TarError, ValueError, OSError) as error:
        raise RebarError(f"{name}: is no tar, or is cut short ({error}); download or copy it again") from None
    finally:
        os.close(descriptor)


def refuse_compressed(path: Path) -> None:
    """Raises RebarError for a compressed tar, of which no part can be read without all before it."""
    if path.name.lower().endswith((*COMPRESSED, ".zip")):
        raise RebarError(
            f"{path}: is compressed, so that no image can be read alone; unpack it and give the folder, or "
            "uncompress it to a .tar (gunzip, unxz, zstd -d)"
        )


THREADS = 16
"""That look into inner tars at a time: it is the disk that they wait for."""


def ilsvrc_archive(folder: Path, split: str) -> Path:
    """Where the original archive of a split lies in a folder of downloads."""
    return folder / f"ILSVRC2012_img_{split}.tar"


def open_tar(path: Path, split: str, labels: str = "") -> ByteRanges:
    """The images of a tar of tars, one a class; of a tar of class folders; or of flat validation images.

    They are in the order of classes and names, as in a folder of class folders. ``labels`` is the list of the
    classes of flat images. Raises RebarError.
    """
    refuse_compressed(path)
    members = list(list_members(path))
    if any(is_image(member.name) for member in members):
        images = [member for member in members if is_image(member.name)]
        if _is_flat(images):
            return _flat(path, images, labels)
        return _by_class(path, _class_folders(path, images, split))
    inner = [member for member in members if member.name.endswith(".tar")]
    if not inner:
        raise RebarError(f"{path}: holds no images, and no tars of images, among its {len(members):,} files")
    with ThreadPoolExecutor(THREADS) as pool:
        contents = list(pool.map(lambda member: list(list_members(path, member)), inner))
    found = []
    for outer, within in zip(inner, contents, strict=True):
        name = PurePosixPath(outer.name).stem
        images = [member for member in within if is_image(member.name)]
        if not images:
            raise RebarError(f"{path}:{outer.name}: holds no images; download the archive again")
        found += [(name, member._replace(name=f"{outer.name}/{member.name}")) for member in images]
    return _by_class(path, found)


def _is_flat(images: Sequence[Member]) -> bool:
    """Whether all lie in one folder, which is that of ILSVRC's validation images."""
    folders = {os.path.dirname(member.name) for member in images}
    return len(folders) == 1 and (folders == {""} or PurePosixPath(images[0].name).name.startswith("ILSVRC2012_val_"))


def _flat(path: Path, images: Sequence[Member], labels: str) -> ByteRanges:
    found = find_labels(path, labels)
    synsets = found.of([member.name for member in images], str(path))
    return _by_class(path, list(zip(synsets, images, strict=True)), found.class_names)


def _class_folders(path: Path, images: Sequence[Member], split: str) -> list[tuple[str, Member]]:
    """(class, image): the folder below the split's, else the folder the image lies in."""
    found: dict[str, list[tuple[str, Member]]] = {"train": [], "val": [], "": []}
    for member in images:
        folders = PurePosixPath(member.name).parts[:-1]
        for name, spellings in SPLIT_WORDS.items():
            place = next((i for i, folder in enumerate(folders[:-1]) if folder in spellings), None)
            if place is not None:
                found[name].append((folders[place + 1], member))
                break
        else:
            found[""].append((folders[-1] if folders else "", member))
    if found["train"] or found["val"]:
        if not found[split]:
            raise RebarError(f"{path}: has no folder {split}/ among its folders, only the other split's")
        return found[split]
    return found[""]


def _by_class(path: Path, images: Iterable[tuple[str, Member]], class_names: Sequence[str] | None = None) -> ByteRanges:
    """The images sorted by class and name, the classes by name."""
    images = sorted(images)
    names = class_names or sorted({name for name, _ in images})
    numbers = {name: number for number, name in enumerate(names)}
    twice = [name for name, count in Counter(member.name for _, member in images).items() if count > 1]
    if twice:
        raise RebarError(f"{path}: holds {twice[0]} twice, and {len(twice) - 1} more; pack it again")
    ranges = (Range(0, *member) for _, member in images)
    return ByteRanges.of([path], names, ranges, [numbers[name] for name, _ in images])
