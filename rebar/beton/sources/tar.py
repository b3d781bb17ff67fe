"""Pictures in a tar that is not unpacked: ILSVRC's own archives, or a packed folder of class folders."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from rebar.beton.sources.byte_ranges import ByteRanges, Range
from rebar.beton.sources.labelled_files import is_picture
from rebar.beton.sources.splits import SPLIT_WORDS
from rebar.beton.sources.tar_index import Member, list_members, refuse_compressed
from rebar.beton.sources.validation_labels import find_labels
from rebar.errors import RebarError

THREADS = 16
"""That look into inner tars at a time: it is the disk that they wait for."""


def ilsvrc_archive(folder: Path, split: str) -> Path:
    """Where the original archive of a split lies in a folder of downloads."""
    return folder / f"ILSVRC2012_img_{split}.tar"


def open_tar(path: Path, split: str, labels: str = "") -> ByteRanges:
    """The pictures of a tar of tars, one a class; of a tar of class folders; or of flat validation pictures.

    They are in the order of classes and names, as in a folder of class folders. ``labels`` is the list of the
    classes of flat pictures. Raises RebarError.
    """
    refuse_compressed(path)
    members = list(list_members(path))
    if any(is_picture(member.name) for member in members):
        pictures = [member for member in members if is_picture(member.name)]
        if _is_flat(pictures):
            return _flat(path, pictures, labels)
        return _by_class(path, _class_folders(path, pictures, split))
    inner = [member for member in members if member.name.endswith(".tar")]
    if not inner:
        raise RebarError(f"{path}: holds no pictures, and no tars of pictures, among its {len(members):,} files")
    with ThreadPoolExecutor(THREADS) as pool:
        contents = list(pool.map(lambda member: list(list_members(path, member)), inner))
    found = []
    for outer, within in zip(inner, contents, strict=True):
        name = PurePosixPath(outer.name).stem
        pictures = [member for member in within if is_picture(member.name)]
        if not pictures:
            raise RebarError(f"{path}:{outer.name}: holds no pictures; download the archive again")
        found += [(name, member._replace(name=f"{outer.name}/{member.name}")) for member in pictures]
    return _by_class(path, found)


def _is_flat(pictures: Sequence[Member]) -> bool:
    """Whether all lie in one folder, which is that of ILSVRC's validation pictures."""
    folders = {os.path.dirname(member.name) for member in pictures}
    return len(folders) == 1 and (folders == {""} or PurePosixPath(pictures[0].name).name.startswith("ILSVRC2012_val_"))


def _flat(path: Path, pictures: Sequence[Member], labels: str) -> ByteRanges:
    found = find_labels(path, labels)
    synsets = found.of([member.name for member in pictures], str(path))
    return _by_class(path, list(zip(synsets, pictures, strict=True)), found.class_names)


def _class_folders(path: Path, pictures: Sequence[Member], split: str) -> list[tuple[str, Member]]:
    """(class, picture): the folder below the split's, else the folder the picture lies in."""
    found: dict[str, list[tuple[str, Member]]] = {"train": [], "val": [], "": []}
    for member in pictures:
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


def _by_class(
    path: Path, pictures: Iterable[tuple[str, Member]], class_names: Sequence[str] | None = None
) -> ByteRanges:
    """The pictures sorted by class and name, the classes by name."""
    pictures = sorted(pictures)
    names = class_names or sorted({name for name, _ in pictures})
    numbers = {name: number for number, name in enumerate(names)}
    twice = [name for name, count in Counter(member.name for _, member in pictures).items() if count > 1]
    if twice:
        raise RebarError(f"{path}: holds {twice[0]} twice, and {len(twice) - 1} more; pack it again")
    ranges = (Range(0, *member) for _, member in pictures)
    return ByteRanges.of([path], names, ranges, [numbers[name] for name, _ in pictures])
