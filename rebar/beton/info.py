"""What is inside a .beton file, in words and as a sheet of some of its pictures."""

from pathlib import Path

import cv2
import numpy as np

from rebar.beton.format import MODE_JPG, BetonError
from rebar.beton.reader import BetonFile
from rebar.beton.sidecar import read_sidecar
from rebar.beton.stored_pictures import decode_picture

TILE = 160
"""Pixels of a side of the square that each picture of a sheet gets."""
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
        f"bytes     {file.sizes.mean():,.0f} a picture, {file.sizes.min():,} to {file.sizes.max():,}",
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
    """Pictures spread evenly over the file, with number and class: RGB uint8 ``[height, width, 3]``.

    A picture that cannot be decoded is a red field.
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
        picture = decode_picture(file, index)
    except BetonError:
        tile[:] = (200, 0, 0)
        return tile
    scale = TILE / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
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


def save_png(picture: np.ndarray, path: Path) -> None:
    """Write an RGB picture. Raises BetonError where that fails."""
    content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
    try:
        path.write_bytes(content.tobytes())
    except OSError as error:
        raise BetonError(f"{path}: cannot be written: {error.strerror or error}") from None
