"""A .beton of any source: written once into a cache folder, found there from then on."""

import fcntl
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rebar.beton.encode import ImagePolicy
from rebar.beton.partial_file import OtherJobError
from rebar.beton.selection import Selection
from rebar.beton.writer import write_beton
from rebar.errors import RebarError
from rebar.sources import Request, open_source
from rebar.sources.folder import Split, find_split
from rebar.sources.registry import is_address
from rebar.sources.tar import COMPRESSED
from rebar.sources.webdataset import expand_shards
from rebar.storage.cache_paths import user_cache

CACHE_VARIABLE = "REBAR_CACHE"
LAYOUT = 1
"""Part of every key: raise it when the same settings give other files."""


def cache_folder() -> Path:
    """``$REBAR_CACHE``, else ``~/.cache/rebar`` (or below ``$XDG_CACHE_HOME``)."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    return user_cache()


def is_source(where: str) -> bool:
    """Whether this is something to write a .beton of, rather than the path of a .beton file."""
    if is_address(where):
        return True
    return Path(where).is_dir() or where.lower().endswith((".tar", ".parquet", *COMPRESSED))


def beton_of(where: str, split: Split, *, subset: str = "full", policy: ImagePolicy | None = None) -> Path:
    """The .beton of what ``where`` names: the file itself, or one written of the source into the cache.

    Of the processes that ask at a time one writes, and the others wait; where it dies, another takes its place.
    A folder that holds ``<split>.beton`` means that. Raises RebarError.
    """
    if not is_source(where):
        return Path(where)
    if (inside := Path(where) / f"{split}.beton").is_file():
        return inside
    policy = policy or ImagePolicy()
    selection = Selection(subset=subset, shuffle=split == "train", seed=policy.seed)
    selection.check()
    target = _cache_path(where, split, selection, policy)
    if target.exists():
        return target
    with _only_one(target):
        if not target.exists():  # nobody wrote it while we waited
            _write(where, split, selection, policy, target)
    return target


def _write(where: str, split: Split, selection: Selection, policy: ImagePolicy, target: Path) -> None:
    print(
        f"writing   {where} ({split}, subset {selection.subset}) to {target}, once; later runs find it there",
        flush=True,
    )
    _, source = open_source(Request(where, split, at_most=selection.at_most))
    source, order = selection.apply(source)
    print(f"images  {len(order):,} in {len(source.class_names):,} classes", flush=True)
    write = functools.partial(
        write_beton, source, target, policy=policy, order=order, num_workers=len(os.sched_getaffinity(0))
    )
    try:
        write()
    except OtherJobError:  # left by other software, or of a source that has changed since
        write(restart=True)


def _cache_path(where: str, split: Split, selection: Selection, policy: ImagePolicy) -> Path:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RebarError(
            f"{folder}: cannot be made: {error.strerror}; set {CACHE_VARIABLE} to another folder"
        ) from None
    key = {"layout": LAYOUT, "source": _identity(where, split), **asdict(selection), **asdict(policy)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]+", "-", where.rstrip("/").rpartition("/")[2])[-60:].strip("-.") or "data"
    return folder / f"{name}-{split}-{selection.subset}-{digest}.beton"


def _identity(where: str, split: Split) -> list[object]:
    """What tells one state of a source from another without reading it.

    Addresses as they are. Of paths also the time of change of the files at the top, and of the class folders, which
    is when images came or went.
    """
    if is_address(where):
        return [where, split]
    try:
        path = find_split(Path(where).resolve(), split)
        files = [path, *sorted(path.iterdir())] if path.is_dir() else expand_shards(str(path))
        found = [(file.name, file.stat()) for file in files]
    except OSError as error:
        raise RebarError(f"{where}: cannot be read: {error.strerror or error}") from None
    return [str(path), split, [(name, status.st_mtime_ns, status.st_size) for name, status in found]]


@contextmanager
def _only_one(target: Path) -> Iterator[None]:
    """Hold the lock of a file to write. The system releases it whenever and however its holder ends."""
    lock = target.with_name(f".{target.name}.lock")
    try:
        file = lock.open("w")
    except OSError as error:
        raise RebarError(f"{lock}: cannot be written: {error.strerror}; set {CACHE_VARIABLE}") from None
    with file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting   for the process that writes {target}", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise RebarError(
                f"{lock}: this file system cannot lock files ({error.strerror}); set {CACHE_VARIABLE} to a local folder"
            ) from None
        yield
