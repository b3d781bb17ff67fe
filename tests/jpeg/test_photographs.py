"""Real photographs, where there are any: REBAR_PHOTOGRAPHS names a folder of JPEG files (benchmarks/photographs.py)."""

import os
from pathlib import Path

import numpy as np
import pytest

from rebar.jpeg.fast import CropDecoder, Status
from tests.jpeg.pictures import crop_fast, crop_whole, random_box

VARIABLE = "REBAR_PHOTOGRAPHS"
MOST = 200
MEAN_DIFFERENCE, WORST_PICTURE, LARGEST_DIFFERENCE = 0.3, 0.5, 40  # grey levels


@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no folder of photographs")
@pytest.mark.parametrize("resolution", [160, 224])
def test_photographs_agree_with_decoding_them_whole(resolution: int) -> None:
    rng = np.random.default_rng(0)
    decoder = CropDecoder(500, 500)
    means, largest = [], 0
    for path in sorted(Path(os.environ[VARIABLE]).rglob("*.jpg"))[:MOST]:
        jpeg = np.fromfile(path, np.uint8)
        height, width = frame_size(jpeg)
        box = random_box(rng, height, width)
        status, fast = crop_fast(decoder, jpeg, box, (resolution, resolution))
        assert status == Status.OK
        difference = np.abs(fast.astype(int) - crop_whole(jpeg, box, (resolution, resolution)))
        means.append(difference.mean())
        largest = max(largest, int(difference.max()))
    assert means, "the folder holds no JPEG files"
    print(f"{np.mean(means):.3f} levels on average, {np.max(means):.3f} in the worst picture, {largest} at most")
    assert np.mean(means) <= MEAN_DIFFERENCE
    assert np.max(means) <= WORST_PICTURE
    assert largest <= LARGEST_DIFFERENCE


def frame_size(jpeg: np.ndarray) -> tuple[int, int]:
    """The size that the frame header gives (baseline files as OpenCV writes them)."""
    at = jpeg.tobytes().index(b"\xff\xc0")
    return int(jpeg[at + 5]) << 8 | int(jpeg[at + 6]), int(jpeg[at + 7]) << 8 | int(jpeg[at + 8])
