"""libturbojpeg is loaded once, and is optional."""

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from rebar.beton.encode import ImagePolicy, encode_image
from rebar.errors import RebarError
from rebar.jpeg.decode import decode_rgb
from rebar.jpeg.format import JpegError
from rebar.jpeg.turbojpeg import LIBRARY_VARIABLE, load_turbojpeg, make_sequential, turbojpeg_available
from tests.conftest import REPOSITORY
from tests.jpeg.images import encode, photograph


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Point the environment variable at a file that does not exist."""
    monkeypatch.setenv(LIBRARY_VARIABLE, "/nonexistent/libturbojpeg.so")
    clear_caches()
    yield "/nonexistent/libturbojpeg.so"
    monkeypatch.undo()
    clear_caches()


def clear_caches() -> None:
    load_turbojpeg.cache_clear()
    turbojpeg_available.cache_clear()


def test_load_turbojpeg_loads_the_library_once() -> None:
    assert turbojpeg_available()
    assert load_turbojpeg() is load_turbojpeg()


def test_load_turbojpeg_raises_when_the_library_is_missing(no_library: str) -> None:
    assert not turbojpeg_available()
    with pytest.raises(RebarError, match=f"{LIBRARY_VARIABLE}={no_library}") as caught:
        load_turbojpeg()
    assert caught.value.code == "turbojpeg-not-found"


def test_decode_rgb_works_and_make_sequential_raises_without_the_library(no_library: str) -> None:
    jpeg = encode(photograph(40, 60), progressive=True)
    assert decode_rgb(jpeg).shape == (40, 60, 3)
    with pytest.raises(JpegError) as caught:
        make_sequential(jpeg)
    assert caught.value.code == "turbojpeg-not-found"


def test_encode_image_reencodes_progressive_jpegs_when_the_library_is_missing(no_library: str) -> None:
    jpeg = encode(photograph(40, 60), progressive=True)
    encoded = encode_image(jpeg.tobytes(), ImagePolicy(), 0)
    assert not encoded.lossless
    np.testing.assert_array_equal(encoded.data[:2], [0xFF, 0xD8])


def test_turbojpeg_available_is_false_for_another_library() -> None:
    code = "from rebar.jpeg.turbojpeg import turbojpeg_available; print(turbojpeg_available())"
    environment = {**os.environ, LIBRARY_VARIABLE: "libc.so.6"}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
