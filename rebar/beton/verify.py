"""Verify .beton files, and compute channel statistics, by decoding every image in threads."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from rebar.beton.format import BetonError
from rebar.beton.images import decode_image
from rebar.beton.reader import MAX_CLASSES, BetonFile
from rebar.beton.sidecar import crc32
from rebar.cli import count, progress_bar

Result = TypeVar("Result")
_IMAGES_PER_TASK = 256


def map_images(
    file: BetonFile,
    job: Callable[[BetonFile, Sequence[int]], Result],
    num_threads: int = 0,
    *,
    samples: Sequence[int] | None = None,
    progress: bool = False,
) -> Iterator[Result]:
    """Yield ``job(file, part)`` for consecutive parts of ``samples`` (default: all samples), in order.

    The job runs in ``num_threads`` threads; 0 uses one per core.
    """
    num_threads = num_threads or len(os.sched_getaffinity(0))
    chosen = range(len(file)) if samples is None else samples
    parts = [chosen[first : first + _IMAGES_PER_TASK] for first in range(0, len(chosen), _IMAGES_PER_TASK)]
    with (
        ThreadPoolExecutor(num_threads) as threads,
        progress_bar("", len(chosen), "images", enabled=progress) as bar,
    ):
        window = num_threads * 2  # bounds the results in memory
        futures = [threads.submit(job, file, part) for part in parts[:window]]
        try:
            for number, part in enumerate(parts):
                result = futures[number].result()
                if number + window < len(parts):
                    futures.append(threads.submit(job, file, parts[number + window]))
                bar.update(len(part))
                yield result
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Verification:
    """The result of a verification; ``problems`` is empty for an intact file."""

    file: BetonFile
    problems: list[str]
    class_counts: np.ndarray
    """Samples per class, int64."""


def verify(path: Path | str, *, num_threads: int = 0, progress: bool = False) -> Verification:
    """Check every page, offset, label and image of a file.

    Raises BetonError if the tables are so damaged that the rest cannot be checked.
    """
    file = BetonFile.open(path)
    problems = [*_check_labels(file), *_check_offsets(file), *_check_pages(file)]
    for found in map_images(file, _check_images, num_threads, progress=progress):
        problems += found
    labels = file.labels[(file.labels >= 0) & (file.labels < MAX_CLASSES)]
    num_classes = len(file.class_names) if file.class_names else 0
    return Verification(file, problems, np.bincount(labels, minlength=num_classes))


def _check_labels(file: BetonFile) -> list[str]:
    num_classes = len(file.class_names) if file.class_names else MAX_CLASSES
    wrong = (file.labels < 0) | (file.labels >= num_classes)
    valid = f"in 0 to {num_classes - 1}, the sidecar's classes" if file.class_names else "a class label"
    return [f"sample {index}: label {int(file.labels[index])} is not {valid}" for index in np.flatnonzero(wrong)]


def _check_offsets(file: BetonFile) -> list[str]:
    """Find images that overlap or cross a page boundary; FFCV reads page by page."""
    order = np.argsort(file.offsets, kind="stable")
    starts, ends = file.offsets[order], file.offsets[order] + file.sizes[order]
    problems = [
        f"samples {order[place]} and {order[place + 1]}: images overlap at byte {int(starts[place + 1]):,}"
        for place in np.flatnonzero(ends[:-1] > starts[1:])
    ]
    size = np.uint64(file.page_size)
    for index in np.flatnonzero(file.offsets // size != (file.offsets + file.sizes - np.uint64(1)) // size):
        problems.append(f"sample {index}: image at byte {int(file.offsets[index]):,} crosses a page boundary")
    return problems


def _check_pages(file: BetonFile) -> list[str]:
    checksums = file.checksums
    if checksums is None:
        return []
    problems = []
    for number, expected in enumerate(checksums.pages, start=checksums.first_page):
        start = number * checksums.page_size
        if crc32(file.data[start : start + checksums.page_size]) != expected:
            on_page = np.flatnonzero(file.offsets // np.uint64(checksums.page_size) == number)
            samples = f"samples {on_page.min()} to {on_page.max()}" if len(on_page) else "no samples"
            problems.append(f"page {number} at byte {start:,} ({samples}): does not have the sidecar's checksum")
    return problems


def _check_images(file: BetonFile, samples: Sequence[int]) -> list[str]:
    problems = []
    for index in samples:
        try:
            decode_image(file, index)
        except BetonError as error:
            problems.append(f"sample {index}: image at byte {int(file.offsets[index]):,} {error}")
    return problems


@dataclass(frozen=True)
class ChannelStats:
    """Mean and standard deviation of red, green and blue in [0, 1]; every image has the same weight."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_samples: int
    """The images that were measured."""
    num_samples_in_file: int

    @property
    def description(self) -> str:
        """Which images were measured, such as ``50,000 evenly spaced images of 1,281,167``."""
        if self.num_samples == self.num_samples_in_file:
            return f"all {count(self.num_samples, 'image')}"
        return f"{self.num_samples:,} evenly spaced images of {self.num_samples_in_file:,}"

    def to_json(self) -> str:
        """Return the file content for training's ``--stats-file``."""
        content = {
            "mean": self.mean,
            "std": self.std,
            "num_samples": self.num_samples,
            "num_samples_in_file": self.num_samples_in_file,
            "samples": self.description,
        }
        return json.dumps(content) + "\n"


def measure_stats(
    path: Path | str, *, max_samples: int | None = None, num_threads: int = 0, progress: bool = False
) -> ChannelStats:
    """Compute channel statistics over all pixels of ``max_samples`` evenly spaced images (default: of all images).

    Raises BetonError.
    """
    file = BetonFile.open(path)
    number = len(file) if max_samples is None else min(max_samples, len(file))
    samples = (np.arange(number) * len(file) // number).tolist()
    moments = np.zeros((2, 3))
    for sums in map_images(file, _sum_moments, num_threads, samples=samples, progress=progress):
        moments += sums
    mean, squares = moments / number
    red, green, blue = (round(float(value), 6) for value in mean)
    std_red, std_green, std_blue = (round(float(v), 6) for v in np.sqrt(np.maximum(squares - mean**2, 0)))
    return ChannelStats((red, green, blue), (std_red, std_green, std_blue), number, len(file))


def _sum_moments(file: BetonFile, samples: Sequence[int]) -> np.ndarray:
    """Return the sums over images of the mean level and the mean squared level, float64 ``[2, 3]``."""
    levels = np.arange(256) / 255
    sums = np.zeros((2, 3))
    for index in samples:
        try:
            image = decode_image(file, index)
        except BetonError as error:
            raise BetonError(
                f"{file.path}: image of sample {index} {error}. Check the file with write_dataset.py --verify.",
                code=error.code,
            ) from None
        for channel in range(3):
            frequencies = np.bincount(image[..., channel].ravel(), minlength=256) / (image.shape[0] * image.shape[1])
            sums[:, channel] += frequencies @ levels, frequencies @ levels**2
    return sums
