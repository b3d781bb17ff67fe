"""Any source of images as a folder of class folders, for those who want one; writing a .beton needs none.

python -m rebar.sources.unpack /data/downloads /data/imagenet    # ILSVRC's archives: train/ and val/, by class
"""

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import get_args

from tqdm import tqdm

from rebar.beton.source import Source
from rebar.cli import run_command
from rebar.errors import RebarError
from rebar.sources import Request, open_source
from rebar.sources.files import is_image
from rebar.sources.folder import Split
from rebar.storage.atomic_write import write_error

THREADS = 8


def unpack(source: Source, folder: Path, *, progress: bool = True) -> int:
    """Write every image of a source to ``folder/CLASS/NAME``; returns how many there were not yet.

    An image has its name only once it is whole; what is there already is left, so that the same call goes on
    after a kill. Raises RebarError.
    """
    for name in source.class_names:
        if not name or PurePosixPath(name).name != name or name.startswith("."):
            raise RebarError(f"the class {name!r} cannot be the name of a folder")
    try:
        for name in source.class_names:
            (folder / name).mkdir(parents=True, exist_ok=True)
        with (
            ThreadPoolExecutor(THREADS) as threads,
            tqdm(total=len(source), desc=f"unpacking to {folder}", disable=not progress, dynamic_ncols=True) as bar,
        ):
            new = 0
            for written in threads.map(lambda index: _unpack_one(source, index, folder), range(len(source))):
                new += written
                bar.update()
        os.sync()
    except OSError as error:
        raise write_error(folder, error) from None
    return new


def _unpack_one(source: Source, index: int, folder: Path) -> bool:
    target = folder / source.class_names[source.label(index)] / _name(source, index)
    if target.is_file() and target.stat().st_size:
        return False
    try:
        content = source.read(index)
    except OSError as error:
        raise RebarError(f"{source.name(index)}: cannot be read: {error.strerror or error}") from None
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, target)
    return True


def _name(source: Source, index: int) -> str:
    """The image's own name; its number where it has none."""
    name = PurePosixPath(source.name(index)).name.rpartition(":")[2]
    return name if is_image(name) else f"{index:08}.JPEG"


def main(argv: Sequence[str]) -> None:
    """Unpack what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m rebar.sources.unpack", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="what write_dataset.py takes as --data-dir")
    parser.add_argument("target", type=Path, help="the folder for train/ and val/, made where it is missing")
    parser.add_argument("--split", choices=get_args(Split), action="append", help="default: both")
    parser.add_argument("--labels", default="", help="list of the classes of images without class folders")
    given = parser.parse_args(argv)
    for split in given.split or get_args(Split):
        _, source = open_source(Request(given.source, split, given.labels))
        new = unpack(source, given.target / split)
        print(f"{given.target / split}: {len(source):,} images, {new:,} of them new", flush=True)


if __name__ == "__main__":
    run_command(main)
