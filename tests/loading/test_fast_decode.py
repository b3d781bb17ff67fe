"""The fast decoder where it takes an image, libturbojpeg where not, and one answer to what is corrupt."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rebar.beton.format import MODE_JPG, MODE_RAW
from rebar.loading import decode as decode_module
from rebar.loading.crops import Crops
from rebar.loading.decode import ImageDecoder, decode_whole
from rebar.loading.ffcv.operations import InMemoryImages
from tests.loading.conftest import textured_image

HEIGHT, WIDTH = textured_image(0).shape[:2]


def jpeg(**options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(textured_image(0)).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


CONTENTS = {
    "baseline": jpeg(),
    "raw": textured_image(0).tobytes(),
    "progressive": jpeg(progressive=True),
    "restart markers": jpeg(restart_marker_blocks=2),
    "cut short": jpeg()[:-500],
    "nothing": bytes(100),
    "4:4:4": jpeg(subsampling=0),
}


def stored(names: list[str]) -> InMemoryImages:
    contents = [CONTENTS[name] for name in names]
    ends = np.cumsum([len(content) for content in contents]).astype(np.uint64)
    sizes = np.array([len(content) for content in contents], np.uint64)
    count = len(names)
    return InMemoryImages(
        samples=np.arange(count),
        data=np.frombuffer(b"".join(contents), np.uint8),
        offsets=ends - sizes,
        sizes=sizes,
        modes=np.array([MODE_RAW if name == "raw" else MODE_JPG for name in names], np.uint8),
        heights=np.full(count, HEIGHT, np.uint16),
        widths=np.full(count, WIDTH, np.uint16),
        path=Path("here"),
    )


def whole_crops(count: int) -> Crops:
    return Crops(np.array([[3, 5, HEIGHT - 7, WIDTH - 9]] * count), np.arange(count) % 2 == 1)


def decode(names: list[str]) -> tuple[NDArray[np.uint8], dict[int, str]]:
    out = np.full((len(names), 32, 32, 3), 77, np.uint8)
    decoder = ImageDecoder(HEIGHT, WIDTH)
    failures = decoder.decode(stored(names), np.arange(len(names)), whole_crops(len(names)), out)
    return out, {slot: error.reason for slot, error in failures}


def test_good_ones_of_all_kinds_are_as_decoded_whole() -> None:
    names = ["raw", "baseline", "baseline", "progressive", "raw", "restart markers", "4:4:4"]
    out, failures = decode(names)
    assert failures == {}
    expected = np.empty_like(out)
    crops = whole_crops(len(names))
    for place in range(len(names)):
        decode_whole(stored(names), place, crops.boxes[place], bool(crops.flips[place]), expected[place])
    assert np.abs(out.astype(float) - expected).mean(axis=(1, 2, 3)).max() < 1


@pytest.mark.parametrize("fast", [True, False])
def test_bad_ones_are_told_apart_with_the_reason(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(decode_module, "_fast_decoder_works", lambda: False)
    names = ["baseline", "cut short", "progressive", "nothing", "baseline"]
    out, failures = decode(names)
    assert set(failures) == {1, 3}
    assert "JPEG" in failures[3]
    assert np.abs(out[0, :, ::-1].astype(float) - out[2, :, ::-1]).mean() < 1
    assert out[4].std() > 10


def test_the_fast_decoder_is_used_here() -> None:
    assert ImageDecoder(8, 8)._fast is not None


def test_without_the_fast_decoder_all_is_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, _ = decode(["baseline", "raw"])
    monkeypatch.setattr(decode_module, "_fast_decoder_works", lambda: False)
    whole, failures = decode(["baseline", "raw"])
    assert failures == {}
    assert np.abs(fast.astype(float) - whole).mean() < 1


def test_a_fast_decoder_that_does_not_compile_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise TypeError("no such instruction")

    monkeypatch.setattr("rebar.jpeg.kernel_cache.load_kernel", broken)
    decode_module._fast_decoder_works.cache_clear()
    try:
        with pytest.warns(UserWarning, match="does not work here, .* no such instruction"):
            assert decode_module.new_crop_decoder(8, 8) is None
        assert decode_module.new_crop_decoder(8, 8) is None
    finally:
        decode_module._fast_decoder_works.cache_clear()
