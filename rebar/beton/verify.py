"""Everything about a .beton file that can be checked: tables, pages, offsets, pictures, labels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rebar.beton.checksums import checksum
from rebar.beton.format import BetonError
from rebar.beton.reader import MOST_CLASSES, BetonFile
from rebar.beton.stored_pictures import decode_picture, for_all_pictures


@dataclass(frozen=True)
class Verification:
    """What was found; ``problems`` is empty for a good file."""

    file: BetonFile
    problems: list[str]
    class_counts: np.ndarray
    """int64, samples of every class."""


def verify(path: Path | str, *, num_threads: int = 0, on_progress: Callable[[int], None] | None = None) -> Verification:
    """Check a whole file: every page, every offset, every picture, every label.

    ``on_progress`` is called with the number of pictures that were decoded. Raises BetonError where the tables are such
    that nothing further can be checked.
    """
    file = BetonFile.open(path)
    problems = [*_wrong_labels(file), *_wrong_places(file), *_wrong_pages(file)]
    for done, found in for_all_pictures(file, _wrong_pictures, num_threads):
        problems += found
        if on_progress:
            on_progress(done)
    labels = file.labels[(file.labels >= 0) & (file.labels < MOST_CLASSES)]
    num_classes = len(file.class_names) if file.class_names else 0
    return Verification(file, problems, np.bincount(labels, minlength=num_classes))


def _wrong_labels(file: BetonFile) -> list[str]:
    count = len(file.class_names) if file.class_names else MOST_CLASSES
    wrong = (file.labels < 0) | (file.labels >= count)
    said = f"0 to {count - 1}, its sidecar's classes" if file.class_names else "a class number"
    return [f"sample {index}: its label is {int(file.labels[index])}, not {said}" for index in np.flatnonzero(wrong)]


def _wrong_places(file: BetonFile) -> list[str]:
    """Pictures that overlap, or lie on two pages; FFCV reads page by page."""
    order = np.argsort(file.offsets, kind="stable")
    starts, ends = file.offsets[order], file.offsets[order] + file.sizes[order]
    problems = [
        f"samples {order[place]} and {order[place + 1]}: their pictures overlap, at byte {int(starts[place + 1]):,}"
        for place in np.flatnonzero(ends[:-1] > starts[1:])
    ]
    size = np.uint64(file.page_size)
    for index in np.flatnonzero(file.offsets // size != (file.offsets + file.sizes - np.uint64(1)) // size):
        problems.append(f"sample {index}: its picture lies on two pages, from byte {int(file.offsets[index]):,} on")
    return problems


def _wrong_pages(file: BetonFile) -> list[str]:
    sums = file.checksums
    if sums is None:
        return []
    problems = []
    for number, expected in enumerate(sums.pages, start=sums.first_page):
        start = number * sums.page_size
        if checksum(file.data[start : start + sums.page_size]) != expected:
            on_it = np.flatnonzero(file.offsets // np.uint64(sums.page_size) == number)
            samples = f"samples {on_it.min()} to {on_it.max()}" if len(on_it) else "no sample"
            problems.append(f"page {number}, from byte {start:,} on ({samples}): its checksum is not the sidecar's")
    return problems


def _wrong_pictures(file: BetonFile, run: range) -> list[str]:
    problems = []
    for index in run:
        try:
            decode_picture(file, index)
        except BetonError as error:
            problems.append(f"sample {index}: its picture, at byte {int(file.offsets[index]):,}, {error}")
    return problems
