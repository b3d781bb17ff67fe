"""Index the images of tars: many tars in parallel processes, with a progress bar, and once per content.

Opening ImageNet's shards would otherwise take minutes in every command. The index is kept in the cache folder under
a name that identifies the path, the size and the modification time of every file.
"""

import gc
import hashlib
import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from rebar.beton.worker_pool import map_in_processes
from rebar.cli import scan_bar, warn
from rebar.errors import RebarError
from rebar.sources.byte_ranges import ByteRanges, PackedNames
from rebar.storage.files import atomic_write, cache_folder

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
    with scan_bar("indexing", len(tasks), "tars") as bar:
        job = _WithoutCollection(read)
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
class _WithoutCollection(Generic[Task]):
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
    numbers: dict[str, int] = {}  # of each class name, in the order of their first images
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
