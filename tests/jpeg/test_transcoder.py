"""Transcoded JPEGs have the same samples, the requested restart markers and the standard Huffman tables."""

import io
import subprocess
import sys

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rebar.jpeg import turbojpeg
from rebar.jpeg.decode import decode_rgb
from rebar.jpeg.format import AC_CODES, JpegError, Status, quantization_tables
from rebar.jpeg.transcoder import Transcoder
from rebar.jpeg.turbojpeg import make_sequential
from tests.conftest import REPOSITORY
from tests.jpeg.images import KINDS, encode, photograph

SHAPES = ((96, 128), (97, 131), (1, 1), (8, 8), (17, 250), (250, 17))


def transcode(transcoder: Transcoder, jpeg: NDArray[np.uint8], interval: int) -> tuple[Status, NDArray[np.uint8]]:
    status, header = transcoder.read_header(jpeg)
    return transcoder.write(jpeg, header, interval) if status == Status.OK else (status, jpeg[:0])


def check_same_samples(jpeg: NDArray[np.uint8], rewritten: NDArray[np.uint8]) -> None:
    """Check that libjpeg-turbo decodes both to the same samples."""
    for before, after in zip(turbojpeg.decode_planes(jpeg), turbojpeg.decode_planes(rewritten), strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(decode_rgb(jpeg), decode_rgb(rewritten))


@pytest.mark.parametrize("read_interval", [0, 1, 3, 1000])
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_transcoding_keeps_the_samples(kind: str, optimize: bool, read_interval: int) -> None:
    transcoder = Transcoder()
    for number, (height, width) in enumerate(SHAPES):
        jpeg = encode(photograph(height, width, number), kind, read_interval, 30 + 10 * number, optimize)
        for interval in (0, 1, 4, 7):
            status, rewritten = transcode(transcoder, jpeg, interval)
            assert status == Status.OK
            check_same_samples(jpeg, rewritten)


def test_scan_is_identical_to_opencv_with_standard_tables() -> None:
    image = photograph(75, 110)
    for kind in KINDS:
        expected = encode(image, kind, interval=3)
        status, rewritten = transcode(Transcoder(), encode(image, kind, optimize=True), 3)
        assert status == Status.OK
        scans = [jpeg.tobytes().partition(b"\xff\xda")[2] for jpeg in (expected, rewritten)]
        assert scans[0][10:] == scans[1][10:]


@pytest.mark.parametrize("read_interval", [0, 3])
@pytest.mark.parametrize("other", [{0: "5161"}, {1: "2131"}, {0: "5161", 1: "2131"}])
def test_transcoding_with_standard_codes_in_some_components(other: dict[int, str], read_interval: int) -> None:
    """The other components have two symbols of equal length and size swapped, which gives another valid image."""
    for number, (height, width) in enumerate(SHAPES):
        content = encode(photograph(height, width, number), "4:2:0", read_interval, 60).tobytes()
        for table, pair in other.items():
            codes = AC_CODES[table]
            content = content.replace(codes, codes.replace(bytes.fromhex(pair), bytes.fromhex(pair[2:] + pair[:2])))
        jpeg = np.frombuffer(content, np.uint8)
        assert not any(AC_CODES[table] in content for table in other)
        for interval in (0, 1, 4):
            status, rewritten = transcode(Transcoder(), jpeg, interval)
            assert status == Status.OK
            check_same_samples(jpeg, rewritten)


def test_transcoding_keeps_the_samples_of_full_range_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    for quality in (1, 50, 100):
        jpeg = encode(noise, "4:4:4", 0, quality, optimize=True)
        status, rewritten = transcode(Transcoder(), jpeg, 2)
        assert status == Status.OK
        check_same_samples(jpeg, rewritten)


@pytest.mark.parametrize("kind", KINDS)
def test_make_sequential_keeps_the_samples(kind: str) -> None:
    for number, (height, width) in enumerate(SHAPES):
        jpeg = encode(photograph(height, width, number), kind, progressive=True)
        assert Transcoder().read_header(jpeg)[0] == Status.UNSUPPORTED
        status, rewritten = transcode(Transcoder(), make_sequential(jpeg), 4)
        assert status == Status.OK
        check_same_samples(jpeg, rewritten)


def test_make_sequential_raises_for_truncated_data() -> None:
    jpeg = encode(photograph(96, 128), progressive=True)
    with pytest.raises(JpegError) as caught:
        make_sequential(jpeg[: jpeg.size // 2])
    assert caught.value.code == "jpeg-corrupt"


def test_transcoding_drops_metadata() -> None:
    buffer = io.BytesIO()
    Image.fromarray(photograph(60, 80)).save(buffer, "JPEG", comment=b"hello" * 100, icc_profile=b"profile" * 100)
    jpeg = np.frombuffer(buffer.getvalue(), np.uint8)
    status, rewritten = transcode(Transcoder(), jpeg, 4)
    assert status == Status.OK
    assert b"hello" not in rewritten.tobytes()
    assert b"profile" not in rewritten.tobytes()
    check_same_samples(jpeg, rewritten)


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_cmyk_and_rgb_are_unsupported(mode: str) -> None:
    buffer = io.BytesIO()
    image = Image.fromarray(photograph(60, 80)).convert(mode)
    image.save(buffer, "JPEG", **({"keep_rgb": True} if mode == "RGB" else {}))
    assert Transcoder().read_header(np.frombuffer(buffer.getvalue(), np.uint8))[0] == Status.UNSUPPORTED


def test_truncated_file_is_never_ok() -> None:
    jpeg = encode(photograph(40, 56))
    transcoder = Transcoder()
    for length in range(0, jpeg.size - 1, 7):
        assert transcode(transcoder, jpeg[:length], 4)[0] not in (Status.OK, Status.UNSUPPORTED)


def test_quantization_tables_agree_with_libjpeg() -> None:
    for quality in (1, 25, 50, 75, 90, 100):
        transcoder = Transcoder()
        transcoder.read_header(encode(photograph(16, 16), quality=quality))
        for component in range(3):
            steps = np.sort(quantization_tables(quality)[min(component, 1)])
            np.testing.assert_array_equal(np.sort(transcoder.quantization(component)), steps)


@pytest.mark.parametrize("count", [600, pytest.param(20_000, marks=pytest.mark.nightly)])
def test_fuzzed_jpegs_are_refused_or_keep_their_samples(count: int) -> None:
    """Runs the fuzzer in a child process, because it may crash."""
    command = [sys.executable, "-m", "tests.jpeg.fuzz_transcoder", "5", str(count)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_opencv_decodes_transcoded_jpegs() -> None:
    jpeg = encode(photograph(61, 83), "4:2:2", optimize=True)
    _, rewritten = transcode(Transcoder(), jpeg, 5)
    np.testing.assert_array_equal(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.imdecode(rewritten, cv2.IMREAD_COLOR))
