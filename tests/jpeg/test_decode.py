"""decode_rgb and decode_bgr agree with other decoders, with libturbojpeg and without it."""

import io
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rebar.jpeg import decode
from rebar.jpeg.decode import decode_bgr, decode_rgb
from rebar.jpeg.format import JpegError
from tests.conftest import REPOSITORY

LIBRARIES = ("libturbojpeg", "opencv", "pillow")


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Decode with one library after the other, as if the ones before it were not installed."""
    disable(request.param, monkeypatch)
    return str(request.param)


def disable(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library != "libturbojpeg":
        monkeypatch.setattr(decode, "turbojpeg_available", lambda: False)
    if library == "pillow":
        monkeypatch.setitem(sys.modules, "cv2", None)  # importing it raises ImportError


def synthetic_image(height: int, width: int) -> NDArray[np.uint8]:
    """Return gradients and edges in all colors, with some noise: uint8 ``[height, width, 3]``."""
    y, x = np.mgrid[:height, :width]
    planes = [127 + 100 * np.sin(x / (7 + 3 * c)) * np.cos(y / (11 - c)) for c in range(3)]
    image = np.stack(planes, axis=-1) + np.random.default_rng(0).normal(0, 4, (height, width, 3))
    image[height // 4 : height // 2, width // 4 : width // 2] += 60
    return np.clip(image, 0, 255).astype(np.uint8)


def encode(image: NDArray[np.uint8], **options: object) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", **{"quality": 90, **options})
    return np.frombuffer(file.getvalue(), np.uint8)


def mean_difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (37, 53), (375, 500)])
@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"restart_marker_blocks": 2}],
    ids=str,
)
def test_decode_rgb_agrees_with_pillow_and_opencv(
    library: str, size: tuple[int, int], options: dict[str, object]
) -> None:
    jpeg = encode(synthetic_image(*size), **options)
    decoded = decode_rgb(jpeg)
    assert decoded.shape == (*size, 3)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert mean_difference(decoded, np.asarray(Image.open(io.BytesIO(jpeg)))) < 1
    assert mean_difference(decoded, cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1]) < 1


@pytest.mark.parametrize("scale_num", [1, 2, 4, 8])
@pytest.mark.parametrize("library", LIBRARIES[1:], indirect=True)
def test_decode_bgr_without_libturbojpeg_gives_the_same_pixels(
    library: str, scale_num: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    jpeg = encode(synthetic_image(75, 101), exif=exif_with_orientation(6))
    fallback = decode_bgr(jpeg, scale_num)
    monkeypatch.undo()
    expected = decode_bgr(jpeg, scale_num)
    assert fallback.shape == expected.shape == (-(-75 * scale_num // 8), -(-101 * scale_num // 8), 3)
    assert mean_difference(fallback, expected) < 0.5


def exif_with_orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def test_decode_rgb_inverts_encoding(library: str) -> None:
    image = synthetic_image(120, 160)
    assert mean_difference(decode_rgb(encode(image, quality=98, subsampling=0)), image) < 1.5
    flat = np.full((16, 16, 3), (200, 100, 20), np.uint8)
    assert mean_difference(decode_rgb(encode(flat)), flat) < 2


def test_decode_rgb_repeats_grayscale_in_three_channels(library: str) -> None:
    gray = synthetic_image(40, 60)[..., 0]
    decoded = decode_rgb(encode(gray))
    assert (decoded == decoded[..., :1]).all()
    assert mean_difference(decoded[..., 0], gray) < 4


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0, 1, 2, 100, 0.3, 0.9, -1, -2])
def test_decode_rgb_raises_for_truncated_data(library: str, kept: float, progressive: bool) -> None:
    jpeg = encode(synthetic_image(120, 160), progressive=progressive)
    with pytest.raises(JpegError) as caught:
        decode_rgb(jpeg[: kept if isinstance(kept, int) else int(kept * len(jpeg))])
    assert caught.value.code == "jpeg-corrupt"
    assert str(caught.value)


@pytest.mark.parametrize("removed", [1, 40])
def test_decode_rgb_raises_for_bytes_missing_in_the_middle(library: str, removed: int) -> None:
    jpeg = encode(synthetic_image(120, 160), restart_marker_blocks=4)
    scan = jpeg.tobytes().index(b"\xff\xda")
    middle = scan + (len(jpeg) - scan) // 2
    with pytest.raises(JpegError) as caught:
        decode_rgb(np.delete(jpeg, np.s_[middle : middle + removed]))
    assert caught.value.code == "jpeg-corrupt"


def test_decode_rgb_ignores_bytes_after_the_end(library: str) -> None:
    jpeg = encode(synthetic_image(40, 60))
    np.testing.assert_array_equal(decode_rgb(np.append(jpeg, jpeg[:99])), decode_rgb(jpeg))


@pytest.mark.parametrize(
    "content",
    [bytes(100), b"\x89PNG" + bytes(50), b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xc0\x00\x02\xff\xd9"],
    ids=["zeros", "png", "empty", "short frame"],
)
def test_decode_rgb_raises_for_other_data(library: str, content: bytes) -> None:
    with pytest.raises(JpegError) as caught:
        decode_rgb(np.frombuffer(content, np.uint8))
    assert caught.value.code == "jpeg-corrupt"


def test_decode_rgb_refuses_cmyk(library: str) -> None:
    file = io.BytesIO()
    Image.fromarray(synthetic_image(40, 60)).convert("CMYK").save(file, "JPEG")
    with pytest.raises(JpegError):
        decode_rgb(np.frombuffer(file.getvalue(), np.uint8))


DECODE_AFTER_ERROR = """
import sys
import numpy as np
from rebar.jpeg.decode import decode_rgb
from rebar.jpeg.format import JpegError

jpeg = np.fromfile(sys.argv[1], np.uint8)
for kept in map(int, sys.argv[2:]):
    try:
        decode_rgb(jpeg[:kept])
    except JpegError:
        print(kept, decode_rgb(jpeg).shape)
"""


def test_decode_rgb_works_after_an_error(tmp_path: Path) -> None:
    jpeg = encode(synthetic_image(120, 160))
    jpeg.tofile(tmp_path / "image.jpg")
    cuts = [2, 30, 300, len(jpeg) - 100]  # three of them within the header
    command = [sys.executable, "-c", DECODE_AFTER_ERROR, str(tmp_path / "image.jpg"), *map(str, cuts)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)  # a process that may crash
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"{kept} (120, 160, 3)" for kept in cuts]


def test_decode_rgb_does_not_use_the_tables_of_the_previous_image(library: str) -> None:
    """A JPEG without Huffman tables, such as a frame of Motion JPEG, is decoded with the standard ones."""
    image = synthetic_image(40, 56)
    complete = encode(image).tobytes()
    start = complete.index(b"\xff\xc4")
    without_tables = np.frombuffer(complete[:start] + complete[complete.index(b"\xff\xda") :], np.uint8)
    expected = decode_rgb(np.frombuffer(complete, np.uint8))
    decode_rgb(encode(np.flip(image), optimize=True))
    np.testing.assert_array_equal(decode_rgb(without_tables), expected)


def test_decode_rgb_in_threads_gives_the_same_pixels(library: str) -> None:
    jpegs = [encode(synthetic_image(60 + 8 * number, 80)) for number in range(4)]
    expected = [decode_rgb(jpeg) for jpeg in jpegs]
    equal: list[bool] = []

    def decode_repeatedly(number: int) -> None:
        equal.extend(np.array_equal(decode_rgb(jpegs[number]), expected[number]) for _ in range(20))

    threads = [threading.Thread(target=decode_repeatedly, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 80
