"""Broken streams give a status: no crash, no endless loop, no byte read or written outside."""

import ast
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from rebar.jpeg.crop_decoder import CropDecoder, Status
from tests.conftest import REPOSITORY
from tests.jpeg.images import crop_fast, encode, photograph

WHOLE = (0, 0, 96, 128)


def fuzz(seed: int, count: int, timeout: float) -> dict[str, int]:
    """Run the fuzzer in its own process; the statuses it met."""
    command = [sys.executable, "-m", "tests.jpeg.hostile", str(seed), str(count)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return ast.literal_eval(done.stdout)


def test_thousands_of_broken_streams() -> None:
    statuses = fuzz(seed=1, count=5000, timeout=120)
    assert {"OK", "UNSUPPORTED", "CORRUPT_HEADER", "CORRUPT_DATA", "CUT_SHORT", "WRONG_SIZE"} == statuses.keys()


@pytest.mark.slow
def test_many_more_broken_streams() -> None:
    fuzz(seed=2, count=100_000, timeout=300)


@pytest.fixture(scope="module")
def decoder() -> CropDecoder:
    return CropDecoder(96, 128)


def status_of(decoder: CropDecoder, jpeg: NDArray[np.uint8]) -> Status:
    return crop_fast(decoder, jpeg, WHOLE, (64, 64))[0]


@pytest.mark.parametrize("interval", [0, 2, 8])
def test_a_file_cut_anywhere_is_not_ok(decoder: CropDecoder, interval: int) -> None:
    jpeg = encode(photograph(96, 128), interval=interval)
    allowed = {Status.TRUNCATED, Status.CORRUPT_DATA, Status.CORRUPT_HEADER}
    for length in (1, 2, 3, 20, 100, 300, 600, 640, jpeg.size // 2, jpeg.size - 40, jpeg.size - 5):
        assert status_of(decoder, jpeg[:length]) in allowed, length


def test_restart_markers_must_count_up(decoder: CropDecoder) -> None:
    jpeg = encode(photograph(96, 128), interval=2).tobytes()
    swapped = jpeg.replace(b"\xff\xd3", b"\xff\xd4")
    assert status_of(decoder, np.frombuffer(swapped, np.uint8)) == Status.CORRUPT_DATA


def test_a_segment_too_long_or_too_short_is_seen(decoder: CropDecoder) -> None:
    """Else a byte lost from the file would become noise in an image that looks fine."""
    jpeg = encode(photograph(96, 128), interval=2).tobytes()
    marker = jpeg.index(b"\xff\xd3")
    for broken in (jpeg[: marker - 3] + jpeg[marker:], jpeg[:marker] + b"\x55" + jpeg[marker:]):
        assert status_of(decoder, np.frombuffer(broken, np.uint8)) in {Status.CORRUPT_DATA, Status.TRUNCATED}


def test_sizes_that_lie_are_seen(decoder: CropDecoder) -> None:
    jpeg = encode(photograph(96, 128), interval=2)
    frame = jpeg.tobytes().index(b"\xff\xc0")
    for at, size in ((5, 80), (7, 112), (5, 0), (7, 0), (5, 65535), (7, 65535)):
        broken = jpeg.copy()
        broken[frame + at : frame + at + 2] = divmod(size, 256)
        assert status_of(decoder, broken) != Status.OK
