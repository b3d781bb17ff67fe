"""The commands that look at a .beton file: ``write_dataset.py --verify | --info | --stats FILE``."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from rebar.beton.info import contact_sheet, describe, save_png
from rebar.beton.reader import BetonFile
from rebar.beton.stats import measure_stats
from rebar.beton.verify import verify
from rebar.errors import RebarError
from rebar.replacing import replacing

COMMANDS = ("--verify", "--info", "--stats")
_SHOWN = 50  # problems


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RebarError(f"{message}; see write_dataset.py {'|'.join(COMMANDS)} --help")


def asks_to_inspect(argv: Sequence[str]) -> bool:
    """Whether a command line is one of these commands."""
    return any(word.partition("=")[0] in COMMANDS for word in argv)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for. Raises RebarError for one that is wrong."""
    parser = _Parser(prog="write_dataset.py", allow_abbrev=False, description="Look at a .beton file.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--verify", metavar="FILE", type=Path, help="check every page, offset, picture and label")
    which.add_argument("--info", metavar="FILE", type=Path, help="what is inside, with a sheet of pictures as PNG")
    which.add_argument("--stats", metavar="FILE", type=Path, help="mean and deviation of the channels, as JSON")
    parser.add_argument("--out", metavar="PATH", type=Path, help="the PNG or JSON file; default: beside FILE")
    parser.add_argument("--num-workers", type=int, default=0, help="threads; 0: one for every core")
    return parser.parse_args(argv)


def inspect(argv: Sequence[str]) -> None:
    """Do what the command line says, and print it. Raises RebarError where a file is not as it should be."""
    given = parse(argv)
    if given.verify:
        _verify(given.verify, given.num_workers)
    elif given.info:
        _info(given.info, given.out or _beside(given.info, ".png"))
    else:
        _stats(given.stats, given.out or _beside(given.stats, ".stats.json"), given.num_workers)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


@contextmanager
def _progress(path: Path) -> Iterator[Callable[[int], None]]:
    """A bar that is told how many pictures are done."""
    with tqdm(total=len(BetonFile.open(path)), unit=" pictures", dynamic_ncols=True) as bar:
        yield lambda done: bar.update(done - bar.n) and None


def _verify(path: Path, num_threads: int) -> None:
    with _progress(path) as on_progress:
        found = verify(path, num_threads=num_threads, on_progress=on_progress)
    for problem in found.problems[:_SHOWN]:
        print(f"wrong     {problem}")
    if len(found.problems) > _SHOWN:
        print(f"          and {len(found.problems) - _SHOWN:,} more")
    counts, names = found.class_counts, found.file.class_names
    print(f"samples   {len(found.file):,} in {len(counts):,} classes, {counts.min():,} to {counts.max():,} a class")
    for label, count in enumerate(counts):
        print(f"          {count:8,}  {names[label] if names and label < len(names) else label}")
    if found.problems:
        raise RebarError(f"{path}: {len(found.problems):,} things are wrong with it; copy it again, or write it anew")
    checked = "picture, label and checksum checked"
    if not found.file.checksums:
        checked = "picture and label checked; there is no sidecar with checksums"
    print(f"good      {path}: every page, offset, {checked}")


def _info(path: Path, out: Path) -> None:
    for line in describe(path):
        print(line)
    save_png(contact_sheet(path), out)
    print(f"pictures  {out}")


def _stats(path: Path, out: Path, num_threads: int) -> None:
    with _progress(path) as on_progress:
        stats = measure_stats(path, num_threads=num_threads, on_progress=on_progress)
    with replacing(out) as (file,):
        file.write(stats.to_json().encode())
    print(f"mean      {', '.join(f'{value:.4f}' for value in stats.mean)}")
    print(f"std       {', '.join(f'{value:.4f}' for value in stats.std)}")
    print(f"written   {out}; training takes it as --stats-file")
