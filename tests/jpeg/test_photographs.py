"""Thousands of crops of real photographs agree with decoding them whole.

There is always the photograph that comes with matplotlib; REBAR_PHOTOGRAPHS names a folder of further JPEG files
(benchmarks/photographs.py makes one).
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
from tests.jpeg.images import KINDS, crop_fast, crop_whole, encode, random_box

VARIABLE = "REBAR_PHOTOGRAPHS"
MOST = 200
MEAN_DIFFERENCE, WORST_IMAGE, LARGEST_DIFFERENCE = 0.3, 0.5, 40  # grey levels


@cache
def photograph() -> NDArray[np.uint8]:
    """600 pixels high, 512 wide, BGR."""
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
            status, fast = crop_fast(decoder, jpeg, box, (resolution, resolution))
            assert status == Status.OK
            difference = np.abs(fast.astype(int) - crop_whole(jpeg, box, (resolution, resolution)))
            means.append(difference.mean())
            largest = max(largest, int(difference.max()))
    print(f"{np.mean(means):.3f} levels on average, {np.max(means):.3f} in the worst crop, {largest} at most")
    assert np.mean(means) <= MEAN_DIFFERENCE
    assert np.max(means) <= WORST_IMAGE
    assert largest <= LARGEST_DIFFERENCE


@pytest.mark.parametrize("resolution", [96, 160, 224])
@pytest.mark.parametrize("kind", KINDS)
def test_crops_of_a_photograph(kind: str, resolution: int) -> None:
    jpegs = [encode(photograph(), kind, interval, quality) for interval, quality in ((0, 90), (4, 90), (4, 75))]
    check_crops(jpegs, resolution, crops_each=70)


@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no folder of photographs")
@pytest.mark.parametrize("resolution", [160, 224])
def test_crops_of_many_photographs(resolution: int) -> None:
    paths = sorted(Path(os.environ[VARIABLE]).rglob("*.jpg"))[:MOST]
    assert paths, "the folder holds no JPEG files"
    check_crops([np.fromfile(path, np.uint8) for path in paths], resolution, crops_each=10)


def frame_size(jpeg: NDArray[np.uint8]) -> tuple[int, int]:
    """The height and width that the frame header gives (baseline files as OpenCV writes them)."""
    at = jpeg.tobytes().index(b"\xff\xc0")
    return int(jpeg[at + 5]) << 8 | int(jpeg[at + 6]), int(jpeg[at + 7]) << 8 | int(jpeg[at + 8])
