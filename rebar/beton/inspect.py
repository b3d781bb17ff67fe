"""What is inside a .beton file, in words and as a sheet of some of its images.

The commands that look at a .beton file: ``write_dataset.py --verify | --info | --stats FILE``.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np
from tqdm import tqdm

from rebar.beton.format import MODE_JPG, BetonError
from rebar.beton.reader import BetonFile
from rebar.beton.sidecar import read_sidecar
from rebar.beton.stored_image import decode_image
from rebar.beton.verify import measure_stats, verify
from rebar.errors import RebarError
from rebar.storage.atomic_write import atomic_write

TILE = 160
"""Pixels of a side of the square that each image of a sheet gets."""
_CAPTION = 20  # pixels below it
_MARGIN = 6


def describe(path: Path | str) -> list[str]:
    """The lines of a description. Raises BetonError for a file that cannot be read."""
    file = BetonFile.open(path)
    sidecar = read_sidecar(file.path)
    counts = np.bincount(file.labels, minlength=file.num_classes)
    jpegs = int((file.modes == MODE_JPG).sum())
    longer = np.maximum(file.heights, file.widths)
    lines = [
        f"file      {file.path}: {file.data.size / 1e9:,.3f} GB, pages of {file.page_size / 2**20:g} MiB",
        f"samples   {len(file):,} in {file.num_classes:,} classes, {counts.min():,} to {counts.max():,} a class",
        f"fields    {', '.join(file.field_names)}",
        f"stored    {jpegs:,} JPEG, {len(file) - jpegs:,} raw",
        f"bytes     {file.sizes.mean():,.0f} an image, {file.sizes.min():,} to {file.sizes.max():,}",
        f"sizes     longer side {longer.min():,} to {longer.max():,} px, {np.median(longer):,.0f} in the middle",
    ]
    if sidecar is None:
        return [*lines, "sidecar   none: no class names, no checksums"]
    policy = ", ".join(f"{key} {value}" for key, value in sidecar.images.items())
    checksums = f"{len(sidecar.checksums.pages):,} pages with checksums" if sidecar.checksums else "no checksums"
    return [
        *lines,
        f"sidecar   Rebar {sidecar.rebar_version}, seed {sidecar.seed}, {checksums}",
        f"policy    {policy}",
        f"classes   {_some(sidecar.class_names)}",
    ]


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (f" ... {names[-1]}" if len(names) > 8 else "")


def contact_sheet(path: Path | str, columns: int = 8, rows: int = 6) -> np.ndarray:
    """Images spread evenly over the file, with number and class: RGB uint8 ``[height, width, 3]``.

    An image that cannot be decoded is a red field.
    """
    file = BetonFile.open(path)
    chosen = np.unique(np.linspace(0, len(file) - 1, columns * rows).astype(np.int64))
    rows = -(-len(chosen) // columns)
    high, wide = TILE + _CAPTION + _MARGIN, TILE + _MARGIN
    sheet = np.full((rows * high + _MARGIN, columns * wide + _MARGIN, 3), 255, np.uint8)
    for place, index in enumerate(chosen):
        top, left = _MARGIN + place // columns * high, _MARGIN + place % columns * wide
        sheet[top : top + TILE, left : left + TILE] = _tile(file, int(index))
        label = int(file.labels[index])
        named = file.class_names is not None and 0 <= label < len(file.class_names)
        caption = f"{index} {file.class_names[label] if named and file.class_names else label}"
        _write(sheet, caption, top + TILE + _CAPTION - 6, left)
    return sheet


def _tile(file: BetonFile, index: int) -> np.ndarray:
    tile = np.full((TILE, TILE, 3), 235, np.uint8)
    try:
        image = decode_image(file, index)
    except BetonError:
        tile[:] = (200, 0, 0)
        return tile
    scale = TILE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    top, left = (TILE - size[1]) // 2, (TILE - size[0]) // 2
    tile[top : top + size[1], left : left + size[0]] = small
    return tile


def _write(sheet: np.ndarray, text: str, bottom: int, left: int) -> None:
    """A caption, cut to the width of a tile."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.4
    shown = "".join(letter if letter.isascii() else "?" for letter in text)
    while cv2.getTextSize(shown, font, size, 1)[0][0] > TILE:
        shown = shown[:-1]
    cv2.putText(sheet, shown, (left, bottom), font, size, (0, 0, 0), 1, cv2.LINE_AA)


def save_png(image: np.ndarray, path: Path) -> None:
    """Write an RGB image. Raises BetonError where that fails."""
    content = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    try:
        path.write_bytes(content.tobytes())
    except OSError as error:
        raise BetonError(f"{path}: cannot be written: {error.strerror or error}") from None


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
    which.add_argument("--verify", metavar="FILE", type=Path, help="check every page, offset, image and label")
    which.add_argument("--info", metavar="FILE", type=Path, help="what is inside, with a sheet of images as PNG")
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
    """A bar that is told how many images are done."""
    with tqdm(total=len(BetonFile.open(path)), unit=" images", dynamic_ncols=True) as bar:
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
    checked = "image, label and checksum checked"
    if not found.file.checksums:
        checked = "image and label checked; there is no sidecar with checksums"
    print(f"good      {path}: every page, offset, {checked}")


def _info(path: Path, out: Path) -> None:
    for line in describe(path):
        print(line)
    save_png(contact_sheet(path), out)
    print(f"images  {out}")


def _stats(path: Path, out: Path, num_threads: int) -> None:
    with _progress(path) as on_progress:
        stats = measure_stats(path, num_threads=num_threads, on_progress=on_progress)
    with atomic_write(out) as (file,):
        file.write(stats.to_json().encode())
    print(f"mean      {', '.join(f'{value:.4f}' for value in stats.mean)}")
    print(f"std       {', '.join(f'{value:.4f}' for value in stats.std)}")
    print(f"written   {out}; training takes it as --stats-file")
