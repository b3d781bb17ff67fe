"""Unpack any image source to class folders. Writing a .beton file does not require this.

python -m rebar.sources.unpack /data/downloads /data/imagenet    # ILSVRC's archives to train/ and val/
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import get_args

from rebar.beton.images import Source, omitted_by
from rebar.cli import CommandParser, count, display_name, progress_bar, run_command
from rebar.errors import RebarError
from rebar.sources.layout import PackedNames, Split, is_image
from rebar.sources.registry import Request, open_source
from rebar.storage.files import check_writable, write_error

NUM_THREADS = 8
_MAX_NAME_BYTES = 255  # of a file name, on common file systems


def unpack(source: Source, folder: Path, *, progress: bool = True) -> int:
    """Write every image of a source to ``folder/CLASS/NAME``; return the number of images written.

    Images of a class whose file names are equal get their index in the source as a prefix. Existing files are skipped,
    and each file is renamed to its final name once it is complete, so the same call resumes after an interruption.
    Raises RebarError.
    """
    for name in source.class_names:
        is_name = name and PurePosixPath(name).name == name and not name.startswith(".") and "\0" not in name
        if not is_name or len(os.fsencode(name)) > _MAX_NAME_BYTES:
            raise RebarError(
                f"{folder}: class name '{display_name(name)}' cannot be used as a folder name. Rename the class in the "
                "source.",
                code="unpack-class-name-invalid",
            )
    names = _file_names(source)
    try:
        for name in source.class_names:
            (folder / name).mkdir(parents=True, exist_ok=True)
        num_written = 0
        with (
            ThreadPoolExecutor(NUM_THREADS) as threads,
            progress_bar(f"unpacking to {folder}", len(source), "images", enabled=progress) as bar,
        ):
            for written in threads.map(
                lambda index: _unpack_image(source, index, folder / names[index]), range(len(source))
            ):
                num_written += written
                bar.update()
        os.sync()
    except OSError as error:
        raise write_error(folder, error) from None
    return num_written


def _unpack_image(source: Source, index: int, target: Path) -> bool:
    """Write an image unless it exists; return whether it was written."""
    if target.is_file() and target.stat().st_size:
        return False
    try:
        content = source.read(index)
    except OSError as error:
        raise RebarError(
            f"{source.name(index)} cannot be read: {error.strerror or error}. Check the disk or the network, "
            "and run the same command again.",
            code="image-unreadable",
        ) from None
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, target)
    return True


def _file_names(source: Source) -> PackedNames:
    """Return the path CLASS/NAME of every image, all different.

    NAME is the image's own file name, or its index if it has none. Images of a class with equal names, for example of
    several WebDataset shards, all get the index as a prefix. Names are compared case-insensitively, because some file
    systems do not distinguish case.
    """
    names = PackedNames(
        f"{source.class_names[source.label(index)]}/{_own_name(source, index) or f'{index:08}.JPEG'}"
        for index in range(len(source))
    )
    counts = Counter(names[index].lower() for index in range(len(names)))
    if len(counts) == len(names):
        return names
    numbered = [_numbered(names[index], index, counts) for index in range(len(names))]
    if len({path.lower() for path in numbered}) < len(numbered):  # a file is named like another with its index
        numbered = [_numbered(names[index], index, {}) for index in range(len(names))]
    return PackedNames(numbered)


def _numbered(path: str, index: int, counts: Mapping[str, int]) -> str:
    """Return a path that occurs only once; others get the index as a prefix of the file name."""
    class_name, _, name = path.rpartition("/")
    return path if counts.get(path.lower()) == 1 else f"{class_name}/{index:08}_{name}"


def _own_name(source: Source, index: int) -> str:
    """Return the image's own file name; empty if it has none."""
    name = PurePosixPath(source.name(index)).name.rpartition(":")[2]
    return name if is_image(name) else ""


def main(argv: Sequence[str]) -> None:
    """Unpack the source given on the command line."""
    parser = CommandParser(prog="python -m rebar.sources.unpack", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="any --data-dir of write_dataset.py")
    parser.add_argument("target", type=Path, help="folder for train/ and val/; created if missing")
    parser.add_argument("--split", choices=get_args(Split), action="append", help="default: both")
    parser.add_argument("--labels", default="", help="list of labels, for images without class folders")
    parser.add_argument("--image-key", default="", help="extension of the image in WebDataset samples with several")
    options = parser.parse_args(argv)
    try:
        options.target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(options.target, error) from None
    check_writable(options.target / ".partial")
    for split in options.split or get_args(Split):
        _, source = open_source(Request(options.source, split, options.labels, options.image_key))
        num_written = unpack(source, options.target / split)
        print(f"{options.target / split}: {count(len(source), 'image')}, {num_written:,} new", flush=True)
        for kind, number in omitted_by(source).items():
            print(f"{'omitted':>9} {number:,} x {kind}", flush=True)


if __name__ == "__main__":
    run_command(main)
