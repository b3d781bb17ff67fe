"""All images of a .beton, decoded whole, by several threads: for looking at a file, not for training.

Everything about a .beton file that can be checked: tables, pages, offsets, images, labels.

Mean and standard deviation of the channels of a .beton's images.
"""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from rebar.beton.format import BetonError
from rebar.beton.reader import MOST_CLASSES, BetonFile
from rebar.beton.sidecar import checksum
from rebar.beton.stored_image import decode_image

Result = TypeVar("Result")
_SHARE = 256  # images that a thread takes at a time


def for_all_images(
    file: BetonFile, job: Callable[[BetonFile, range], Result], num_threads: int = 0
) -> Iterator[tuple[int, Result]]:
    """``job`` of every run of samples, in order, each with how many samples are done; by a thread for every core."""
    count = num_threads or len(os.sched_getaffinity(0))
    runs = [range(first, min(first + _SHARE, len(file))) for first in range(0, len(file), _SHARE)]
    with ThreadPoolExecutor(count) as threads:
        window = count * 2  # what is worked out ahead of its turn is bounded
        futures = [threads.submit(job, file, run) for run in runs[:window]]
        try:
            for number, run in enumerate(runs):
                result = futures[number].result()
                if number + window < len(runs):
                    futures.append(threads.submit(job, file, runs[number + window]))
                yield run.stop, result
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Verification:
    """What was found; ``problems`` is empty for a good file."""

    file: BetonFile
    problems: list[str]
    class_counts: np.ndarray
    """int64, samples of every class."""


def verify(path: Path | str, *, num_threads: int = 0, on_progress: Callable[[int], None] | None = None) -> Verification:
    """Check a whole file: every page, every offset, every image, every label.

    ``on_progress`` is called with the number of images that were decoded. Raises BetonError where the tables are such
    that nothing further can be checked.
    """
    file = BetonFile.open(path)
    problems = [*_wrong_labels(file), *_wrong_places(file), *_wrong_pages(file)]
    for done, found in for_all_images(file, _wrong_images, num_threads):
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
    """Images that overlap, or lie on two pages; FFCV reads page by page."""
    order = np.argsort(file.offsets, kind="stable")
    starts, ends = file.offsets[order], file.offsets[order] + file.sizes[order]
    problems = [
        f"samples {order[place]} and {order[place + 1]}: their images overlap, at byte {int(starts[place + 1]):,}"
        for place in np.flatnonzero(ends[:-1] > starts[1:])
    ]
    size = np.uint64(file.page_size)
    for index in np.flatnonzero(file.offsets // size != (file.offsets + file.sizes - np.uint64(1)) // size):
        problems.append(f"sample {index}: its image lies on two pages, from byte {int(file.offsets[index]):,} on")
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


def _wrong_images(file: BetonFile, run: range) -> list[str]:
    problems = []
    for index in run:
        try:
            decode_image(file, index)
        except BetonError as error:
            problems.append(f"sample {index}: its image, at byte {int(file.offsets[index]):,}, {error}")
    return problems


@dataclass(frozen=True)
class ChannelStats:
    """Of red, green and blue, as shares of 255; every image counts alike, whatever its size."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_samples: int

    def to_json(self) -> str:
        """What training takes as ``--stats-file``."""
        content = {"mean": self.mean, "std": self.std, "num_samples": self.num_samples}
        return json.dumps(content) + "\n"


def measure_stats(
    path: Path | str, *, num_threads: int = 0, on_progress: Callable[[int], None] | None = None
) -> ChannelStats:
    """Over all pixels of all images. Raises BetonError for a file, or an image in it, that cannot be read.

    ``on_progress`` is called with the number of images done.
    """
    file = BetonFile.open(path)
    moments = np.zeros((2, 3))
    for done, found in for_all_images(file, _moments, num_threads):
        moments += found
        if on_progress:
            on_progress(done)
    mean, squares = moments / len(file)
    red, green, blue = (round(float(value), 6) for value in mean)
    wide = [round(float(value), 6) for value in np.sqrt(np.maximum(squares - mean**2, 0))]
    return ChannelStats((red, green, blue), (wide[0], wide[1], wide[2]), len(file))


def _moments(file: BetonFile, run: range) -> np.ndarray:
    """The sums over images of the mean level and the mean squared level, ``[2, 3]``."""
    levels = np.arange(256) / 255
    sums = np.zeros((2, 3))
    for index in run:
        try:
            image = decode_image(file, index)
        except BetonError as error:
            raise BetonError(f"{file.path}: the image of sample {index} {error}; see --verify") from None
        for channel in range(3):
            shares = np.bincount(image[..., channel].ravel(), minlength=256) / (image.shape[0] * image.shape[1])
            sums[:, channel] += shares @ levels, shares @ levels**2
    return sums
