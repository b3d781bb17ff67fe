"""Rewritten JPEGs: the same samples to the bit, restart markers where they belong, the standard tables."""

import io
import subprocess
import sys

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rebar.jpeg import planes, turbojpeg
from rebar.jpeg.standard_tables import AC_CODES, quantization_tables
from rebar.jpeg.status import Status
from rebar.jpeg.transcoder import Transcoder
from rebar.jpeg.turbojpeg import make_sequential
from tests.conftest import REPOSITORY
from tests.jpeg.images import KINDS, encode, photograph

SHAPES = ((96, 128), (97, 131), (1, 1), (8, 8), (17, 250), (250, 17))


def transcode(transcoder: Transcoder, jpeg: NDArray[np.uint8], interval: int) -> tuple[Status, NDArray[np.uint8]]:
    status, header = transcoder.read_header(jpeg)
    return transcoder.write(jpeg, header, interval) if status == Status.OK else (status, jpeg[:0])


def check(jpeg: NDArray[np.uint8], rewritten: NDArray[np.uint8]) -> None:
    """libjpeg-turbo finds the same samples in both."""
    for before, after in zip(turbojpeg.decode_planes(jpeg), turbojpeg.decode_planes(rewritten), strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(turbojpeg.decode_rgb(jpeg), turbojpeg.decode_rgb(rewritten))


@pytest.mark.parametrize("read_interval", [0, 1, 3, 1000])
@pytest.mark.parametrize("optimise", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_same(kind: str, optimise: bool, read_interval: int) -> None:
    transcoder = Transcoder()
    for number, (height, width) in enumerate(SHAPES):
        jpeg = encode(photograph(height, width, number), kind, read_interval, 30 + 10 * number, optimise)
        for interval in (0, 1, 4, 7):
            status, rewritten = transcode(transcoder, jpeg, interval)
            assert status == Status.OK
            check(jpeg, rewritten)


def test_it_writes_what_opencv_writes() -> None:
    """Down to the byte: the same tables, markers and bits, whatever they were before."""
    image = photograph(75, 110)
    for kind in KINDS:
        wanted = encode(image, kind, interval=3)
        status, rewritten = transcode(Transcoder(), encode(image, kind, optimise=True), 3)
        assert status == Status.OK
        scans = [jpeg.tobytes().partition(b"\xff\xda")[2] for jpeg in (wanted, rewritten)]
        assert scans[0][10:] == scans[1][10:]


@pytest.mark.parametrize("read_interval", [0, 3])
@pytest.mark.parametrize("other", [{0: "5161"}, {1: "2131"}, {0: "5161", 1: "2131"}])
def test_some_components_have_the_standard_codes(other: dict[int, str], read_interval: int) -> None:
    """Others have two symbols of equal length and size exchanged, which gives another image as good as any."""
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
            check(jpeg, rewritten)


def test_noise_of_full_range() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    for quality in (1, 50, 100):
        jpeg = encode(noise, "4:4:4", 0, quality, optimise=True)
        status, rewritten = transcode(Transcoder(), jpeg, 2)
        assert status == Status.OK
        check(jpeg, rewritten)


def test_regions_of_it_are_decoded() -> None:
    _, rewritten = transcode(Transcoder(), encode(photograph(96, 128), optimise=True), 4)
    status, found = planes.decode_planes(rewritten, (40, 30, 20, 50), 96, 128)
    assert status == Status.OK
    np.testing.assert_array_equal(found[0], turbojpeg.decode_planes(rewritten)[0][40:60, 30:80])


@pytest.mark.parametrize("kind", KINDS)
def test_progressive_ones_are_made_sequential(kind: str) -> None:
    for number, (height, width) in enumerate(SHAPES):
        jpeg = encode(photograph(height, width, number), kind, progressive=True)
        assert Transcoder().read_header(jpeg)[0] == Status.UNSUPPORTED
        status, rewritten = transcode(Transcoder(), make_sequential(jpeg), 4)
        assert status == Status.OK
        check(jpeg, rewritten)


def test_a_progressive_one_cut_short_is_refused() -> None:
    jpeg = encode(photograph(96, 128), progressive=True)
    with pytest.raises(turbojpeg.JpegError):
        make_sequential(jpeg[: jpeg.size // 2])


def test_metadata_is_left_out_and_colour_kept() -> None:
    buffer = io.BytesIO()
    Image.fromarray(photograph(60, 80)).save(buffer, "JPEG", comment=b"hello" * 100, icc_profile=b"profile" * 100)
    jpeg = np.frombuffer(buffer.getvalue(), np.uint8)
    status, rewritten = transcode(Transcoder(), jpeg, 4)
    assert status == Status.OK
    assert b"hello" not in rewritten.tobytes()
    assert b"profile" not in rewritten.tobytes()
    check(jpeg, rewritten)


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_what_is_not_ycbcr_is_not_taken(mode: str) -> None:
    buffer = io.BytesIO()
    image = Image.fromarray(photograph(60, 80)).convert(mode)
    image.save(buffer, "JPEG", **({"keep_rgb": True} if mode == "RGB" else {}))
    assert Transcoder().read_header(np.frombuffer(buffer.getvalue(), np.uint8))[0] == Status.UNSUPPORTED


def test_cut_anywhere_is_noticed() -> None:
    jpeg = encode(photograph(40, 56))
    transcoder = Transcoder()
    for length in range(0, jpeg.size - 1, 7):
        assert transcode(transcoder, jpeg[:length], 4)[0] not in (Status.OK, Status.UNSUPPORTED)


def test_quantisation_is_libjpegs() -> None:
    for quality in (1, 25, 50, 75, 90, 100):
        transcoder = Transcoder()
        transcoder.read_header(encode(photograph(16, 16), quality=quality))
        for component in range(3):
            steps = np.sort(quantization_tables(quality)[min(component, 1)])
            np.testing.assert_array_equal(np.sort(transcoder.quantization(component)), steps)


def test_broken_streams_do_no_harm() -> None:
    """In a process of its own: each JPEG ends where readable memory ends."""
    command = [sys.executable, "-m", "tests.jpeg.hostile_transcode", "5", "4000"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_opencv_reads_it() -> None:
    jpeg = encode(photograph(61, 83), "4:2:2", optimise=True)
    _, rewritten = transcode(Transcoder(), jpeg, 5)
    np.testing.assert_array_equal(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.imdecode(rewritten, cv2.IMREAD_COLOR))
