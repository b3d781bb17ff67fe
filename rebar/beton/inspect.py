"""The commands that inspect a .beton file: ``write_dataset.py --verify | --info | --stats FILE``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from rebar.beton.format import MODE_JPG, BetonError
from rebar.beton.images import decode_image
from rebar.beton.reader import BetonFile
from rebar.beton.sidecar import read_sidecar
from rebar.beton.verify import measure_stats, verify
from rebar.cli import CommandParser, count, display_name
from rebar.errors import RebarError
from rebar.storage.files import atomic_write, check_output

COMMANDS = ("--verify", "--info", "--stats")
TILE = 160
"""Side in pixels of each image on a contact sheet."""
_CAPTION = 20  # pixels of height
_MARGIN = 6  # pixels
_MAX_PROBLEMS = 50  # printed
STATS_SAMPLES = 50_000
"""Images that ``--stats`` measures by default. The standard error of a mean in [0, 1] is then at most 0.0023."""


def describe(path: Path | str) -> list[str]:
    """Return the lines of a description of a file. Raises BetonError."""
    file = BetonFile.open(path)
    sidecar = read_sidecar(file.path)
    counts = np.bincount(file.labels, minlength=file.num_classes)
    num_jpegs = int((file.modes == MODE_JPG).sum())
    longer = np.maximum(file.heights, file.widths)
    lines = [
        f"file      {file.path}: {file.data.size / 1e9:,.3f} GB, pages of {file.page_size / 2**20:g} MiB",
        f"samples   {len(file):,} in {_describe_classes(counts)}",
        f"fields    {', '.join(file.field_names)}",
        f"stored    {num_jpegs:,} JPEG, {len(file) - num_jpegs:,} raw",
        f"bytes     {file.sizes.mean():,.0f} per image, {value_range(file.sizes)}",
        f"sizes     longer side {value_range(longer)} px, median {np.median(longer):,.0f} px",
    ]
    if sidecar is None:
        return [*lines, "sidecar   none: no class names, no checksums"]
    policy = ", ".join(f"{key} {value}" for key, value in sidecar.images.items())
    checksums = f"checksums of {count(len(sidecar.checksums.pages), 'page')}" if sidecar.checksums else "no checksums"
    names = [display_name(name) for name in sidecar.class_names]
    return [
        *lines,
        f"sidecar   Rebar {sidecar.rebar_version}, seed {sidecar.seed}, {checksums}",
        f"policy    {policy}",
        f"classes   {', '.join(names[:8])}" + (f" ... {names[-1]}" if len(names) > 8 else ""),
    ]


def value_range(values: np.ndarray) -> str:
    """Return the lowest and the highest value, as '12 to 16', or '16' if they are equal."""
    lowest, highest = values.min(), values.max()
    return f"{lowest:,}" if lowest == highest else f"{lowest:,} to {highest:,}"


def _describe_classes(counts: np.ndarray) -> str:
    return f"{count(len(counts), 'class', 'classes')}, {value_range(counts)} per class"


def contact_sheet(path: Path | str, columns: int = 8, rows: int = 6) -> np.ndarray:
    """Draw evenly spaced samples of a file with their index and class: RGB uint8 ``[height, width, 3]``.

    An image that cannot be decoded is drawn as a red square.
    """
    file = BetonFile.open(path)
    samples = np.unique(np.linspace(0, len(file) - 1, columns * rows).astype(np.int64))
    rows = -(-len(samples) // columns)
    cell_height, cell_width = TILE + _CAPTION + _MARGIN, TILE + _MARGIN
    sheet = np.full((rows * cell_height + _MARGIN, columns * cell_width + _MARGIN, 3), 255, np.uint8)
    for cell, index in enumerate(samples):
        top, left = _MARGIN + cell // columns * cell_height, _MARGIN + cell % columns * cell_width
        sheet[top : top + TILE, left : left + TILE] = _draw_tile(file, int(index))
        label = int(file.labels[index])
        has_name = file.class_names is not None and 0 <= label < len(file.class_names)
        caption = f"{index} {file.class_names[label] if has_name and file.class_names else label}"
        _draw_caption(sheet, caption, top + TILE + _CAPTION - 6, left)
    return sheet


def _draw_tile(file: BetonFile, index: int) -> np.ndarray:
    tile = np.full((TILE, TILE, 3), 235, np.uint8)
    try:
        image = decode_image(file, index)
    except BetonError:
        tile[:] = (200, 0, 0)
        return tile
    scale = TILE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    top, left = (TILE - size[1]) // 2, (TILE - size[0]) // 2
    tile[top : top + size[1], left : left + size[0]] = resized
    return tile


def _draw_caption(sheet: np.ndarray, text: str, bottom: int, left: int) -> None:
    """Draw a caption, truncated to the width of a tile."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.4
    shown = "".join(letter if letter.isascii() else "?" for letter in display_name(text))
    while cv2.getTextSize(shown, font, size, 1)[0][0] > TILE:
        shown = shown[:-1]
    cv2.putText(sheet, shown, (left, bottom), font, size, (0, 0, 0), 1, cv2.LINE_AA)


def is_inspect_command(argv: Sequence[str]) -> bool:
    """Return whether a command line contains one of COMMANDS."""
    return any(argument.partition("=")[0] in COMMANDS for argument in argv)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises RebarError."""
    parser = CommandParser(prog="write_dataset.py", allow_abbrev=False, description="Inspect a .beton file.")
    command = parser.add_mutually_exclusive_group(required=True)
    command.add_argument("--verify", metavar="FILE", type=Path, help="check every page, offset, label and image")
    command.add_argument("--info", metavar="FILE", type=Path, help="describe the file, and draw a contact sheet as PNG")
    command.add_argument("--stats", metavar="FILE", type=Path, help="channel mean and standard deviation, as JSON")
    parser.add_argument("--out", metavar="PATH", type=Path, help="path of the PNG or JSON; default: next to FILE")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing PNG or JSON")
    parser.add_argument(
        "--exact", action="store_true", help=f"--stats: measure all images, not {STATS_SAMPLES:,} evenly spaced ones"
    )
    parser.add_argument("--num-workers", type=int, default=0, help="threads; 0: one per core")
    options = parser.parse_args(argv)
    if options.exact and not options.stats:
        parser.error("--exact is only for --stats")
    if options.verify and (options.out or options.overwrite):
        parser.error("--out and --overwrite are only for --info and --stats")
    return options


def main(argv: Sequence[str]) -> None:
    """Run an inspection command. Raises RebarError if the file is damaged."""
    options = parse_arguments(argv)
    if options.verify:
        _verify(options.verify, options.num_workers)
    elif options.info:
        _info(options.info, _find_output(options, options.info, ".png"))
    else:
        max_samples = None if options.exact else STATS_SAMPLES
        _stats(options.stats, _find_output(options, options.stats, ".stats.json"), max_samples, options.num_workers)


def _find_output(options: argparse.Namespace, path: Path, suffix: str) -> Path:
    """Return the path of the PNG or JSON. Raises RebarError if it exists or cannot be written."""
    out: Path = options.out or path.with_name(path.name + suffix)
    check_output(out, overwrite=options.overwrite)
    return out


def _verify(path: Path, num_threads: int) -> None:
    found = verify(path, num_threads=num_threads, progress=True)
    for problem in found.problems[:_MAX_PROBLEMS]:
        print(f"problem   {problem}")
    if len(found.problems) > _MAX_PROBLEMS:
        print(f"          and {len(found.problems) - _MAX_PROBLEMS:,} more")
    counts, names = found.class_counts, found.file.class_names
    print(f"samples   {len(found.file):,} in {_describe_classes(counts)}")
    for label, number in enumerate(counts):
        print(f"          {number:8,}  {display_name(names[label]) if names and label < len(names) else label}")
    if found.problems:
        raise RebarError(
            f"{path}: {count(len(found.problems), 'problem')} found. Copy it again, or write it again.",
            code="beton-verification-failed",
        )
    checked = "offsets, labels, images and checksums are correct"
    if not found.file.checksums:
        checked = "offsets, labels and images are correct; there is no sidecar with checksums"
    print(f"ok        {path}: {checked}")


def _info(path: Path, out: Path) -> None:
    for line in describe(path):
        print(line)
    content = cv2.imencode(".png", cv2.cvtColor(contact_sheet(path), cv2.COLOR_RGB2BGR))[1]
    with atomic_write(out) as (file,):
        file.write(content.tobytes())
    print(f"images    {out}")


def _stats(path: Path, out: Path, max_samples: int | None, num_threads: int) -> None:
    stats = measure_stats(path, max_samples=max_samples, num_threads=num_threads, progress=True)
    with atomic_write(out) as (file,):
        file.write(stats.to_json().encode())
    print(f"mean      {', '.join(f'{value:.4f}' for value in stats.mean)}")
    print(f"std       {', '.join(f'{value:.4f}' for value in stats.std)}")
    print(f"measured  {stats.description}")
    print(f"written   {out}; pass it to training as --stats-file")
