"""The index of the images in tars, built in parallel processes with a progress bar, and once per content.

An image is a byte range of a tar: about 45 bytes in the index, plus its name. Opening ImageNet's shards would otherwise
take minutes in every command. The index is kept in the cache folder under a name that identifies the path, the size and
the modification time of every file.
"""

import errno
import gc
import hashlib
import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from rebar.beton.worker_pool import map_in_processes
from rebar.cli import progress_bar, warn
from rebar.errors import RebarError
from rebar.sources.layout import PackedNames
from rebar.sources.tar_members import Member
from rebar.storage.files import atomic_write, cache_folder


@dataclass(frozen=True, eq=False)
class ByteRanges:
    """Images at known byte ranges of ``files``. Create one with :meth:`from_members`.

    The file is opened for every read, because there may be more files than the limit of open files per process.
    """

    class_names: Sequence[str]
    """Empty if labels are numbers whose names are not known yet."""
    files: Sequence[Path]
    names: PackedNames
    labels: np.ndarray
    """int32 ``[n]``, as are ``file_numbers``."""
    file_numbers: np.ndarray
    offsets: np.ndarray
    """Bytes, int64 ``[n]``, as are ``sizes``."""
    sizes: np.ndarray
    omitted: Mapping[str, int] = field(default_factory=dict)
    """See :class:`rebar.beton.images.OmittingSource`."""

    @staticmethod
    def from_members(
        path: Path,
        class_names: Sequence[str],
        members: Sequence[Member],
        labels: object,
        omitted: Mapping[str, int],
        file_number: int = 0,
    ) -> "ByteRanges":
        """Return a source of members of one tar, with one label each."""
        return ByteRanges(
            class_names=list(class_names),
            files=[path],
            names=PackedNames(member.name for member in members),
            labels=np.asarray(labels, np.int32),
            file_numbers=np.full(len(members), file_number, np.int32),
            offsets=np.array([member.offset for member in members], np.int64),
            sizes=np.array([member.size for member in members], np.int64),
            omitted=dict(omitted),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, order: np.ndarray) -> "ByteRanges":
        """Return the images at the indices ``order``, int64 ``[n]``, in this order."""
        arrays = {name: getattr(self, name)[order] for name in ("labels", "file_numbers", "offsets", "sizes")}
        return replace(self, names=PackedNames(self.names[index] for index in order.tolist()), **arrays)

    def label(self, index: int) -> int:
        """Return the label of an image."""
        return int(self.labels[index])

    def read(self, index: int) -> bytes:
        """Return the bytes of an image. Raises OSError if the file is truncated."""
        size = int(self.sizes[index])
        descriptor = os.open(self.files[self.file_numbers[index]], os.O_RDONLY)
        try:
            content = os.pread(descriptor, size, int(self.offsets[index]))
        finally:
            os.close(descriptor)
        if len(content) != size:
            raise OSError(errno.EIO, f"the file is truncated: {size - len(content):,} bytes of the image are missing")
        return content

    def name(self, index: int) -> str:
        """Return the path of the file and the name of the image within it."""
        return f"{self.files[self.file_numbers[index]]}:{self.names[index]}"


LAYOUT = 1
"""Part of every name in the cache. Increment it when equal tars give another index."""
MIN_PARALLEL = 16
"""Minimum number of tars for which worker processes are started; starting them takes about a second."""
MIN_WORKERS = 4
"""With fewer cores, some processes wait for the disk."""
MIN_CACHED = 10_000
"""Images from which an index is kept."""

Task = TypeVar("Task")


def cached_index(files: Sequence[Path], settings: str, read: Callable[[], ByteRanges]) -> ByteRanges:
    """Return the result of ``read()``, or the one that an earlier call with equal arguments kept in the cache folder.

    ``files`` are all files that ``read`` reads, and ``settings`` describes everything else that its result depends on.
    Results of fewer than MIN_CACHED images are not kept.
    """
    path = _index_path(files, settings)
    index = _load(path, files)
    if index is None:
        index = read()
        if len(index) >= MIN_CACHED:
            _save(path, index)
    return index


def read_tars(files: Sequence[Path], tasks: Sequence[Task], read: Callable[[Task], ByteRanges]) -> ByteRanges:
    """Return the images of ``read(task)`` for every task, in order. Class names are sorted; numeric classes have none.

    ``files`` are all files that are read. ``read`` is pickled; an error that it raises is raised here. Raises
    RebarError if some of the classes are numbers and others are names.
    """
    return _join(files, _read_all(tasks, read))


def _read_all(tasks: Sequence[Task], read: Callable[[Task], ByteRanges]) -> Iterator[ByteRanges]:
    num_workers = min(max(len(os.sched_getaffinity(0)), MIN_WORKERS), len(tasks))
    with progress_bar("indexing", len(tasks), "tars") as bar:
        job = _WithoutGarbageCollection(read)
        if len(tasks) < MIN_PARALLEL:
            for task in tasks:
                yield job(task)
                bar.update()
            return
        with closing(map_in_processes(job, tasks, num_workers=num_workers)) as parts:
            for part in parts:
                yield part
                bar.update()


@dataclass(frozen=True)
class _WithoutGarbageCollection(Generic[Task]):
    """Calls ``read`` without garbage collection, which would visit every file of a tar repeatedly and free none."""

    read: Callable[[Task], ByteRanges]

    def __call__(self, task: Task) -> ByteRanges:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return self.read(task)
        finally:
            if was_enabled:
                gc.enable()


def _join(files: Sequence[Path], parts: Iterable[ByteRanges]) -> ByteRanges:
    """Concatenate the images of all parts. Their arrays are copied, because they may be in a worker's buffer."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("labels", "file_numbers", "offsets", "sizes", "ends")}
    contents: list[bytes] = []
    num_bytes = 0
    numbers: dict[str, int] = {}  # class name -> number, in the order of their first images
    omitted: Counter[str] = Counter()
    has_numbers = False
    for part in parts:
        labels = part.labels
        if part.class_names:
            labels = np.array([numbers.setdefault(name, len(numbers)) for name in part.class_names], np.int32)[labels]
        has_numbers |= bool(len(part) and not part.class_names)
        for name, values in (("labels", labels), ("ends", part.names.ends + num_bytes)):
            columns[name].append(values.copy())
        for name in ("file_numbers", "offsets", "sizes"):
            columns[name].append(getattr(part, name).copy())
        contents.append(part.names.content)
        num_bytes += len(part.names.content)
        omitted.update(part.omitted)
    if has_numbers and numbers:
        raise mixed_classes_error(str(files[0].parent))
    # Each list is released before the next one is concatenated.
    joined = {name: np.concatenate(columns.pop(name)) if columns[name] else np.zeros(0, int) for name in [*columns]}
    class_names = sorted(numbers)
    if class_names:
        new_numbers = np.empty(len(numbers), np.int32)
        new_numbers[[numbers[name] for name in class_names]] = np.arange(len(numbers))
        joined["labels"] = new_numbers[joined["labels"]]
    names = PackedNames.from_arrays(b"".join(contents), joined.pop("ends"))
    return ByteRanges(class_names, list(files), names, **joined, omitted=dict(omitted))


def mixed_classes_error(location: str) -> RebarError:
    """Return the error of samples of which some have a number and others a name as their class."""
    return RebarError(
        f"{location}: some samples have a number as their class, others a name. Use one form in all shards.",
        code="webdataset-label-invalid",
    )


def _index_path(files: Sequence[Path], settings: str) -> Path:
    digest = hashlib.sha256(f"{LAYOUT} {settings}".encode())
    for path in files:
        status = path.stat()
        identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(identity.encode("utf-8", "surrogateescape"))
    return cache_folder() / f"tar-index-{digest.hexdigest()[:20]}.npz"


def _save(path: Path, index: ByteRanges) -> None:
    text = json.dumps({"class_names": index.class_names, "omitted": index.omitted})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as (file,):
            np.savez(
                file,
                text=np.frombuffer(text.encode(), np.uint8),
                names=np.frombuffer(index.names.content, np.uint8),
                ends=index.names.ends,
                labels=index.labels,
                file_numbers=index.file_numbers,
                offsets=index.offsets,
                sizes=index.sizes,
            )
    except (OSError, RebarError) as error:
        warn(f"the index of the tars could not be cached, and will be read again by the next command: {error}")


def _load(path: Path, files: Sequence[Path]) -> ByteRanges | None:
    """Return a cached index; None if there is none, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            text = json.loads(arrays["text"].tobytes())
            return ByteRanges(
                class_names=text["class_names"],
                files=list(files),
                names=PackedNames.from_arrays(arrays["names"].tobytes(), arrays["ends"]),
                labels=arrays["labels"],
                file_numbers=arrays["file_numbers"],
                offsets=arrays["offsets"],
                sizes=arrays["sizes"],
                omitted=text["omitted"],
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
