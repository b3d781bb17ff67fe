"""A cache of .beton files: an image source is converted once, and later training runs reuse the file."""

import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from rebar.beton.encode import ImagePolicy
from rebar.beton.partial_file import JobMismatchError, journal_path, partial_path
from rebar.beton.selection import Selection
from rebar.beton.writer import write_beton
from rebar.cli import count
from rebar.errors import RebarError
from rebar.sources.layout import Split, find_split
from rebar.sources.registry import Request, is_remote, open_source
from rebar.sources.tar import COMPRESSED
from rebar.sources.webdataset import expand_shards
from rebar.storage.files import CACHE_VARIABLE, cache_folder, file_lock

LAYOUT = 1
"""Part of every cache key. Increment it when the same settings produce different files."""


def is_source(location: str) -> bool:
    """Return whether a location is a source to write a .beton file from, not the path of a .beton file."""
    return (
        is_remote(location) or Path(location).is_dir() or location.lower().endswith((".tar", ".parquet", *COMPRESSED))
    )


def resolve_beton(
    location: str,
    split: Split,
    *,
    subset: str = "full",
    max_classes: int = 0,
    max_samples_per_class: int = 0,
    image_key: str = "",
    policy: ImagePolicy | None = None,
) -> Path:
    """Return the path of a .beton file for a location; convert a source first unless it is in the cache.

    The path of a .beton file is returned unchanged. For a folder with a file ``<split>.beton``, that file is returned.
    If several processes call this for the same source, one writes and the others wait; if the writer dies, another
    process resumes. Raises RebarError.
    """
    if not is_source(location):
        return Path(location)
    if (inside := Path(location) / f"{split}.beton").is_file():
        return inside
    policy = policy or ImagePolicy()
    selection = Selection(subset, max_classes or None, max_samples_per_class or None, split == "train", policy.seed)
    selection.validate()
    request = Request(location, split, image_key=image_key, max_images=selection.max_images)
    target = _cache_path(request, selection, policy)
    if target.exists():
        return target
    with _exclusive(target):
        if not target.exists():  # another process may have written it
            _write(request, selection, policy, target)
    return target


def _write(request: Request, selection: Selection, policy: ImagePolicy, target: Path) -> None:
    location, split = request.location, request.split
    print(f"opening   {location} ({split})", flush=True)
    _, source = open_source(request)
    source, order = selection.apply(source)
    print(
        f"writing   {location} ({split}, subset {selection.subset}) to {target}; later runs reuse this file",
        flush=True,
    )
    print(f"images    {len(order):,} in {count(len(source.class_names), 'class', 'classes')}", flush=True)
    write = functools.partial(
        write_beton, source, target, policy=policy, order=order, num_workers=len(os.sched_getaffinity(0))
    )
    try:
        write()
    except JobMismatchError:  # another software version wrote it, or the source has changed
        kept = _set_aside(target)
        print(f"kept      {kept}, an unfinished file of another version or source; it can be deleted", flush=True)
        write()


def _set_aside(target: Path) -> Path:
    """Rename the unfinished file and its journal, left by an earlier run; return the new path."""
    partial, journal = partial_path(target), journal_path(target)
    number = next(n for n in itertools.count(1) if not partial.with_name(f"{partial.name}.{n}").exists())
    for path in (journal, partial):
        path.replace(path.with_name(f"{path.name}.{number}"))
    return partial.with_name(f"{partial.name}.{number}")


def _cache_path(request: Request, selection: Selection, policy: ImagePolicy) -> Path:
    location, split = request.location, request.split
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RebarError(
            f"{folder} cannot be created: {error.strerror}. Set {CACHE_VARIABLE} to another folder.",
            code="dataset-cache-not-writable",
        ) from None
    key = {"layout": LAYOUT, "source": _identity(location, split), **asdict(selection), **asdict(policy)}
    if request.image_key:
        key["image_key"] = request.image_key
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]+", "-", location.rstrip("/").rpartition("/")[2])[-60:].strip("-.") or "data"
    return folder / f"{name}-{split}-{selection.subset}-{digest}.beton"


def _identity(location: str, split: Split) -> list[object]:
    """Return a value that identifies the source's current content, without reading the images.

    For an address, the value is the address. For a path, it includes the modification times of the top-level files
    and the class folders; a folder's time changes when images are added or removed.
    """
    if is_remote(location):
        return [location, split]
    try:
        path = find_split(Path(location).resolve(), split)
        files = [path, *sorted(path.iterdir())] if path.is_dir() else expand_shards(str(path))
        found = [(file.name, file.stat()) for file in files]
    except OSError as error:
        raise RebarError(
            f"{location} cannot be read: {error.strerror or error}. Check its permissions and the disk.",
            code="source-unreadable",
        ) from None
    return [str(path), split, [(name, status.st_mtime_ns, status.st_size) for name, status in found]]


@contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    """Lock the target for the duration of the block; wait if another process is writing it."""
    lock = target.with_name(f".{target.name}.cache-lock")  # write_beton() uses .NAME.lock
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(lock, "", required=True))
        except RebarError as error:
            if error.code != "file-locked":
                raise RebarError(f"{error} Or set {CACHE_VARIABLE} to a local folder.", code=error.code) from None
            print(f"waiting   for the process that writes {target}", flush=True)
            stack.enter_context(file_lock(lock, "", timeout=-1, required=True))
        yield
