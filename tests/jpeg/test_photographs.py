"""Thousands of crops of real photographs agree with full-image decoding.

One photograph comes with matplotlib. REBAR_PHOTOGRAPHS can name a folder of further JPEG files, such as one created by
benchmarks/photographs.py.
"""

import os
from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray

from rebar.jpeg.crop_decoder import CropDecoder, Status
from tests.jpeg.images import KINDS, crop_full_decode, decode_crop, encode, random_box

VARIABLE = "REBAR_PHOTOGRAPHS"
MAX_FILES = 200
MEAN_DIFFERENCE, WORST_IMAGE, LARGEST_DIFFERENCE = 0.3, 0.5, 40  # gray levels


@cache
def photograph() -> NDArray[np.uint8]:
    """Return a photograph, uint8 BGR ``[600, 512, 3]``."""
    path = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    return np.asarray(cv2.imread(str(path)), np.uint8)


def check_crops(jpegs: list[NDArray[np.uint8]], resolution: int, crops_each: int) -> None:
    rng = np.random.default_rng(resolution)
    decoder = CropDecoder(600, 600)
    means, largest = [], 0
    for jpeg in jpegs:
        height, width = frame_size(jpeg)
        for _ in range(crops_each):
            box = random_box(rng, height, width)
            status, fast = decode_crop(decoder, jpeg, box, (resolution, resolution))
            assert status == Status.OK
            difference = np.abs(fast.astype(int) - crop_full_decode(jpeg, box, (resolution, resolution)))
            means.append(difference.mean())
            largest = max(largest, int(difference.max()))
    assert np.mean(means) <= MEAN_DIFFERENCE
    assert np.max(means) <= WORST_IMAGE
    assert largest <= LARGEST_DIFFERENCE


@pytest.mark.parametrize("resolution", [96, 160, 224])
@pytest.mark.parametrize("kind", KINDS)
def test_decode_crops_of_a_photograph(kind: str, resolution: int) -> None:
    jpegs = [encode(photograph(), kind, interval, quality) for interval, quality in ((0, 90), (4, 90), (4, 75))]
    check_crops(jpegs, resolution, crops_each=25)


@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} is not set")
@pytest.mark.parametrize("resolution", [160, 224])
def test_decode_crops_of_many_photographs(resolution: int) -> None:
    paths = sorted(Path(os.environ[VARIABLE]).rglob("*.jpg"))[:MAX_FILES]
    assert paths, "no JPEG files"
    check_crops([np.fromfile(path, np.uint8) for path in paths], resolution, crops_each=10)


def frame_size(jpeg: NDArray[np.uint8]) -> tuple[int, int]:
    """Return the height and width from the frame header of a baseline JPEG."""
    frame = jpeg.tobytes().index(b"\xff\xc0")
    return int(jpeg[frame + 5]) << 8 | int(jpeg[frame + 6]), int(jpeg[frame + 7]) << 8 | int(jpeg[frame + 8])
