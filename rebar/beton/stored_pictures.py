"""All pictures of a .beton, decoded whole, by several threads: for looking at a file, not for training."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from rebar.beton.format import MODE_JPG, BetonError
from rebar.beton.reader import BetonFile
from rebar.jpeg.turbojpeg import JpegError, decode_rgb

Result = TypeVar("Result")
_SHARE = 256  # pictures that a thread takes at a time


def decode_picture(file: BetonFile, index: int) -> np.ndarray:
    """A sample's picture, RGB uint8 ``[height, width, 3]``. Raises BetonError: what is wrong with it, but not where."""
    content = file.image_bytes(index)
    shape = (int(file.heights[index]), int(file.widths[index]), 3)
    try:
        picture = decode_rgb(content) if file.modes[index] == MODE_JPG else content.reshape(shape)
    except (JpegError, ValueError) as error:
        raise BetonError(f"cannot be decoded: {error}") from None
    if picture.shape != shape:
        raise BetonError(
            f"is {picture.shape[1]} x {picture.shape[0]} pixels, not {shape[1]} x {shape[0]} as the table says"
        )
    return picture


def for_all_pictures(
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
