"""Decoded samples are bit-identical to libjpeg-turbo's."""

import numpy as np
import pytest
from numpy.typing import NDArray

from rebar.jpeg import turbojpeg
from rebar.jpeg.format import Status
from rebar.jpeg.transcoder import Transcoder
from tests.jpeg.images import FACTORS, KINDS, encode, photograph, random_box
from tests.jpeg.planes import decode_planes

REGIONS = 8
SHAPES = ((96, 128), (97, 131), (16, 16), (1, 1), (8, 8), (17, 250), (250, 17), (9, 40))


def check_regions(jpeg: NDArray[np.uint8], kind: str, height: int, width: int, rng: np.random.Generator) -> None:
    full = turbojpeg.decode_planes(jpeg)
    for number in range(REGIONS):
        box = (0, 0, height, width) if number == 0 else random_box(rng, height, width)
        status, planes = decode_planes(jpeg, box, height, width)
        assert status == Status.OK
        assert len(planes) == len(full)
        top, left, box_height, box_width = box
        for c, (plane, expected) in enumerate(zip(planes, full, strict=True)):
            h_samp, v_samp = FACTORS[kind] if c else (1, 1)
            rows = slice(top // v_samp, -(-(top + box_height) // v_samp))
            columns = slice(left // h_samp, -(-(left + box_width) // h_samp))
            np.testing.assert_array_equal(plane, expected[rows, columns], f"component {c} of {box}")


@pytest.mark.parametrize("interval", [0, 1, 2, 3, 4, 7, 8, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_decode_planes_of_regions_is_bit_exact(kind: str, interval: int) -> None:
    rng = np.random.default_rng(interval)
    for seed, (height, width) in enumerate(SHAPES):
        jpeg = encode(photograph(height, width, seed), kind, interval)
        check_regions(jpeg, kind, height, width, rng)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("quality", [1, 10, 50, 75, 95, 100])
def test_decode_planes_at_any_quality_is_bit_exact(quality: int, optimize: bool) -> None:
    rng = np.random.default_rng(quality)
    for seed, kind in enumerate(KINDS):
        jpeg = encode(photograph(75, 110, seed), kind, 3, quality, optimize)
        check_regions(jpeg, kind, 75, 110, rng)


@pytest.mark.parametrize("kind", KINDS)
def test_decode_planes_of_full_range_noise_is_bit_exact(kind: str) -> None:
    """Noise has the largest coefficients and the longest codes."""
    rng = np.random.default_rng(7)
    extremes = (rng.integers(0, 2, (64, 80, 3)) * 255).astype(np.uint8)
    for quality in (100, 60):
        check_regions(encode(extremes, kind, 2, quality), kind, 64, 80, rng)


def test_decode_planes_of_constant_image_is_bit_exact() -> None:
    """Constant images have DC coefficients only."""
    rng = np.random.default_rng(3)
    for level in (0, 1, 127, 200, 255):
        jpeg = encode(np.full((40, 56, 3), level, np.uint8), "4:2:0", 2)
        check_regions(jpeg, "4:2:0", 40, 56, rng)


def test_decode_planes_reads_regions_of_a_transcoded_jpeg() -> None:
    transcoder, jpeg = Transcoder(), encode(photograph(96, 128), optimize=True)
    status, header = transcoder.read_header(jpeg)
    assert status == Status.OK
    status, rewritten = transcoder.write(jpeg, header, 4)
    assert status == Status.OK
    check_regions(rewritten, "4:2:0", 96, 128, np.random.default_rng(0))
