"""JPEGs decode as others decode them; broken ones are errors."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rebar.jpeg.turbojpeg import JpegError, decode_rgb, load_turbojpeg

ROOT = Path(__file__).resolve().parent.parent.parent


def photograph(height: int, width: int) -> NDArray[np.uint8]:
    """Gradients and edges of all colours, and some noise."""
    y, x = np.mgrid[:height, :width]
    planes = [127 + 100 * np.sin(x / (7 + 3 * c)) * np.cos(y / (11 - c)) for c in range(3)]
    image = np.stack(planes, axis=-1) + np.random.default_rng(0).normal(0, 4, (height, width, 3))
    image[height // 4 : height // 2, width // 4 : width // 2] += 60
    return np.clip(image, 0, 255).astype(np.uint8)


def encode(image: NDArray[np.uint8], **options: object) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", **{"quality": 90, **options})
    return np.frombuffer(file.getvalue(), np.uint8)


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (37, 53), (375, 500)])
@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"restart_marker_blocks": 2}],
    ids=str,
)
def test_colours_are_as_other_decoders_see_them(size: tuple[int, int], options: dict[str, object]) -> None:
    jpeg = encode(photograph(*size), **options)
    decoded = decode_rgb(jpeg)
    assert decoded.shape == (*size, 3)
    assert decoded.dtype == np.uint8
    assert difference(decoded, np.asarray(Image.open(io.BytesIO(jpeg)))) < 1
    assert difference(decoded, cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1]) < 1


def test_what_was_encoded_is_decoded() -> None:
    image = photograph(120, 160)
    assert difference(decode_rgb(encode(image, quality=98, subsampling=0)), image) < 1.5
    plain = np.full((16, 16, 3), (200, 100, 20), np.uint8)
    assert difference(decode_rgb(encode(plain)), plain) < 2


def test_grayscale_becomes_three_equal_channels() -> None:
    gray = photograph(40, 60)[..., 0]
    decoded = decode_rgb(encode(gray))
    assert (decoded == decoded[..., :1]).all()
    assert difference(decoded[..., 0], gray) < 4


@pytest.mark.parametrize("kept", [0, 1, 2, 100, 0.3, 0.9])
def test_a_stream_cut_short_is_an_error(kept: float) -> None:
    jpeg = encode(photograph(120, 160))
    with pytest.raises(JpegError, match=r"\w"):
        decode_rgb(jpeg[: kept if isinstance(kept, int) else int(kept * len(jpeg))])


@pytest.mark.parametrize(
    "content", [bytes(100), b"\x89PNG" + bytes(50), b"\xff\xd8\xff\xd9"], ids=["zeros", "png", "empty"]
)
def test_what_is_no_jpeg_is_an_error(content: bytes) -> None:
    with pytest.raises(JpegError, match=r"\w"):
        decode_rgb(np.frombuffer(content, np.uint8))


AFTER_AN_ERROR = """
import sys
import numpy as np
from rebar.jpeg.turbojpeg import JpegError, decode_rgb

jpeg = np.fromfile(sys.argv[1], np.uint8)
for kept in map(int, sys.argv[2:]):
    try:
        decode_rgb(jpeg[:kept])
    except JpegError:
        print(kept, decode_rgb(jpeg).shape)
"""


def test_after_an_error_the_next_image_is_fine(tmp_path: Path) -> None:
    jpeg = encode(photograph(120, 160))
    jpeg.tofile(tmp_path / "image.jpg")
    cuts = [2, 30, 300, len(jpeg) - 100]  # three of them within the header
    command = [sys.executable, "-c", AFTER_AN_ERROR, str(tmp_path / "image.jpg"), *map(str, cuts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # a process that may crash
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"{kept} (120, 160, 3)" for kept in cuts]


def test_threads_do_not_disturb_each_other() -> None:
    jpegs = [encode(photograph(60 + 8 * number, 80)) for number in range(4)]
    expected = [decode_rgb(jpeg) for jpeg in jpegs]
    equal: list[bool] = []

    def decode(number: int) -> None:
        equal.extend(np.array_equal(decode_rgb(jpegs[number]), expected[number]) for _ in range(20))

    threads = [threading.Thread(target=decode, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 80


# ------------------------------------------------------------------ the library


def test_the_library_is_loaded_once() -> None:
    assert load_turbojpeg() is load_turbojpeg()


@pytest.mark.parametrize("library", ["/nonexistent/libturbojpeg.so", "libc.so.6"])  # none, and another
def test_a_missing_library_comes_with_advice(library: str) -> None:
    code = (
        "from rebar.cli import run_command; from rebar.jpeg.turbojpeg import load_turbojpeg; "
        "run_command(lambda _: load_turbojpeg(), [])"
    )
    environment = {**os.environ, "TURBOJPEG_LIBRARY": library}
    environment.pop("RANK", None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"TURBOJPEG_LIBRARY={library} is no turbojpeg library" in done.stderr
    assert "apt-get install" in done.stderr
    assert "conda install" in done.stderr
    assert done.stderr.count("\n") == 1
