"""CropDecoder returns a status for corrupt JPEGs, without crashes, hangs and out-of-bounds accesses."""

import ast
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from rebar.jpeg.crop_decoder import CropDecoder, Status
from tests.conftest import REPOSITORY
from tests.jpeg.images import decode_crop, encode, photograph

FULL_IMAGE = (0, 0, 96, 128)


def fuzz(seed: int, count: int, timeout: float) -> dict[str, int]:
    """Run the fuzzer in a child process, which may crash; return how often each status occurred."""
    command = [sys.executable, "-m", "tests.jpeg.fuzz_crop_decoder", str(seed), str(count)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return ast.literal_eval(done.stdout)


def test_crop_decoder_returns_every_status_for_fuzzed_jpegs() -> None:
    assert fuzz(seed=1, count=1500, timeout=120).keys() == Status.__members__.keys()


@pytest.mark.nightly
def test_crop_decoder_survives_many_fuzzed_jpegs() -> None:
    fuzz(seed=2, count=100_000, timeout=600)


@pytest.fixture(scope="module")
def decoder() -> CropDecoder:
    return CropDecoder(96, 128)


def status_of(decoder: CropDecoder, jpeg: NDArray[np.uint8]) -> Status:
    return decode_crop(decoder, jpeg, FULL_IMAGE, (64, 64))[0]


@pytest.mark.parametrize("interval", [0, 2, 8])
def test_truncated_file_is_never_ok(decoder: CropDecoder, interval: int) -> None:
    jpeg = encode(photograph(96, 128), interval=interval)
    allowed = {Status.TRUNCATED, Status.CORRUPT_DATA, Status.CORRUPT_HEADER}
    for length in (1, 2, 3, 20, 100, 300, 600, 640, jpeg.size // 2, jpeg.size - 40, jpeg.size - 5):
        assert status_of(decoder, jpeg[:length]) in allowed, length


def test_restart_markers_out_of_sequence_are_corrupt(decoder: CropDecoder) -> None:
    jpeg = encode(photograph(96, 128), interval=2).tobytes()
    swapped = jpeg.replace(b"\xff\xd3", b"\xff\xd4")
    assert status_of(decoder, np.frombuffer(swapped, np.uint8)) == Status.CORRUPT_DATA


def test_segment_of_wrong_length_is_corrupt_or_truncated(decoder: CropDecoder) -> None:
    jpeg = encode(photograph(96, 128), interval=2).tobytes()
    marker = jpeg.index(b"\xff\xd3")
    for broken in (jpeg[: marker - 3] + jpeg[marker:], jpeg[:marker] + b"\x55" + jpeg[marker:]):
        assert status_of(decoder, np.frombuffer(broken, np.uint8)) in {Status.CORRUPT_DATA, Status.TRUNCATED}


def test_wrong_frame_size_is_not_ok(decoder: CropDecoder) -> None:
    jpeg = encode(photograph(96, 128), interval=2)
    frame = jpeg.tobytes().index(b"\xff\xc0")
    for at, size in ((5, 80), (7, 112), (5, 0), (7, 0), (5, 65535), (7, 65535)):
        broken = jpeg.copy()
        broken[frame + at : frame + at + 2] = divmod(size, 256)
        assert status_of(decoder, broken) != Status.OK
