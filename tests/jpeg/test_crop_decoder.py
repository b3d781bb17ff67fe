"""CropDecoder agrees with full-image decoding, cropping and cv2 INTER_AREA."""

import io
import threading

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from rebar.jpeg.crop_decoder import CropDecoder, Status
from tests.jpeg.images import KINDS, Box, crop_full_decode, crop_in_float, decode_crop, encode, photograph, random_box

MAX_SIDE = 300  # pixels
MAX_ERROR = 1.5  # gray levels, against the same computation in float; rounding accounts for 0.5
# Gray levels against cv2, which averages pixels that libjpeg has already rounded and clamped.
MEAN_DIFFERENCE, SMALL_MEAN_DIFFERENCE = 0.5, 1.5  # for outputs of at least a thousand pixels; of at least a hundred


@pytest.fixture(scope="module")
def decoder() -> CropDecoder:
    return CropDecoder(MAX_SIDE, MAX_SIDE)


def check(
    decoder: CropDecoder, jpeg: NDArray[np.uint8], kind: str, box: Box, size: tuple[int, int], flip: bool = False
) -> None:
    status, fast = decode_crop(decoder, jpeg, box, size, flip)
    assert status == Status.OK
    fast = fast[:, ::-1] if flip else fast
    error = np.abs(fast - crop_in_float(jpeg, kind, box, size))
    assert error.max() <= MAX_ERROR, f"{error.max()} levels"
    difference = np.abs(fast.astype(int) - crop_full_decode(jpeg, box, size))
    independent = min(fast.size, 3 * box[2] * box[3])  # an enlarged pixel counts once
    if independent >= 300:  # one clamped pixel changes the mean of fewer values by more
        assert difference.mean() <= (MEAN_DIFFERENCE if independent > 3000 else SMALL_MEAN_DIFFERENCE)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    height=st.integers(1, 120),
    width=st.integers(1, MAX_SIDE),
    size=st.tuples(st.integers(1, 256), st.integers(1, 256)),
    interval=st.sampled_from([0, 1, 4, 5]),
    flip=st.booleans(),
    seed=st.integers(0, 1000),
)
@example(kind="4:2:0", height=1, width=1, size=(1, 1), interval=0, flip=False, seed=0)
@example(kind="4:2:0", height=8, width=8, size=(224, 224), interval=1, flip=True, seed=0)
@example(kind="4:2:0", height=17, width=300, size=(1, 255), interval=4, flip=False, seed=0)
@example(kind="4:2:0", height=2, width=36, size=(24, 42), interval=0, flip=False, seed=142)
@example(kind="gray", height=120, width=1, size=(33, 17), interval=0, flip=True, seed=1)
@example(kind="4:2:0", height=5, width=4, size=(1, 1), interval=0, flip=False, seed=392)
def test_decode_crops_agrees_for_any_size_and_subsampling(
    decoder: CropDecoder,
    kind: str,
    height: int,
    width: int,
    size: tuple[int, int],
    interval: int,
    flip: bool,
    seed: int,
) -> None:
    jpeg = encode(photograph(height, width, seed), kind, interval)
    check(decoder, jpeg, kind, random_box(np.random.default_rng(seed), height, width), size, flip)


@pytest.mark.parametrize("kind", KINDS)
def test_decode_crops_at_image_edges(decoder: CropDecoder, kind: str) -> None:
    height, width = 131, 203
    jpeg = encode(photograph(height, width), kind, 3)
    for high, wide in ((131, 203), (60, 80), (33, 17), (5, 120)):
        for top in (0, (height - high) // 2, height - high):
            for left in (0, (width - wide) // 2, width - wide):
                check(decoder, jpeg, kind, (top, left, high, wide), (48, 64))


@pytest.mark.parametrize("size", [(15, 15), (16, 16), (17, 17), (31, 47), (96, 1), (1, 96), (224, 224), (97, 160)])
def test_flipped_crop_is_the_horizontal_flip(decoder: CropDecoder, size: tuple[int, int]) -> None:
    jpeg = encode(photograph(150, 200), interval=4)
    for box in ((0, 0, 150, 200), (13, 21, 77, 111), (100, 150, 20, 30)):
        _, plain = decode_crop(decoder, jpeg, box, size)
        _, flipped = decode_crop(decoder, jpeg, box, size, flip=True)
        np.testing.assert_array_equal(flipped, plain[:, ::-1])


def test_decode_crops_with_large_reduction(decoder: CropDecoder) -> None:
    jpeg = encode(photograph(300, 300), interval=4)
    for size in ((8, 8), (24, 100), (3, 5)):
        check(decoder, jpeg, "4:2:0", (0, 0, 300, 300), size)


def test_decode_crops_of_more_huffman_tables_than_are_cached() -> None:
    rng = np.random.default_rng(0)
    images = [photograph(int(rng.integers(40, 90)), int(rng.integers(40, 90)), seed) for seed in range(24)]
    jpegs = [encode(image, KINDS[i % 5], i % 4, 50 + 2 * i, optimize=True) for i, image in enumerate(images)]
    starts = np.cumsum([0] + [jpeg.size for jpeg in jpegs])
    order = rng.permutation(np.repeat(np.arange(24), 2))
    boxes = np.array([random_box(rng, *images[i].shape[:2]) for i in order], np.int64)
    out = np.zeros((len(order), 40, 40, 3), np.uint8)
    decoder = CropDecoder(90, 90)
    sizes = np.array([jpegs[i].size for i in order], np.uint64)
    flips = np.zeros(len(order), np.bool_)
    statuses = decoder.decode_crops(np.concatenate(jpegs), starts[order].astype(np.uint64), sizes, boxes, flips, out)
    assert not statuses.any()
    for slot, i in enumerate(order):
        expected = crop_full_decode(jpegs[i], tuple(boxes[slot].tolist()), (40, 40))
        assert np.abs(out[slot].astype(int) - expected).mean() < SMALL_MEAN_DIFFERENCE


def test_decoders_in_threads_give_the_same_pixels() -> None:
    jpeg = encode(photograph(200, 260), interval=4)
    results: list[NDArray[np.uint8]] = []

    def decode() -> None:
        own = CropDecoder(MAX_SIDE, MAX_SIDE)
        for _ in range(20):
            results.append(decode_crop(own, jpeg, (10, 20, 150, 180), (96, 96))[1])

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize(
    "box",
    [(0, 0, 101, 10), (0, 0, 10, 121), (-1, 0, 5, 5), (0, -1, 5, 5), (100, 0, 1, 1), (0, 0, 0, 5), (96, 116, 5, 5)],
)
def test_box_outside_the_image_is_wrong_size(decoder: CropDecoder, box: Box) -> None:
    assert decode_crop(decoder, encode(photograph(100, 120)), box, (16, 16))[0] == Status.WRONG_SIZE


def test_image_larger_than_the_decoder_is_wrong_size() -> None:
    jpeg = encode(photograph(100, 120))
    assert decode_crop(CropDecoder(100, 119), jpeg, (0, 0, 5, 5), (16, 16))[0] == Status.WRONG_SIZE
    assert decode_crop(CropDecoder(99, 120), jpeg, (0, 0, 5, 5), (16, 16))[0] == Status.WRONG_SIZE
    assert decode_crop(CropDecoder(100, 120), jpeg, (0, 0, 5, 5), (16, 16))[0] == Status.OK


def test_decode_crops_raises_value_error_for_wrong_arguments(decoder: CropDecoder) -> None:
    jpeg = encode(photograph(20, 20))
    offsets, sizes = np.zeros(1, np.uint64), np.array([jpeg.size], np.uint64)
    box, flip, out = np.array([[0, 0, 5, 5]]), np.zeros(1, np.bool_), np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="contiguous"):
        decoder.decode_crops(jpeg, offsets, sizes, box, flip, out[:, :, ::-1])
    with pytest.raises(ValueError, match="length"):
        decoder.decode_crops(jpeg, offsets, sizes, box[:0], flip, out)
    with pytest.raises(ValueError, match="outside"):
        decoder.decode_crops(jpeg, offsets, sizes + np.uint64(1), box, flip, out)
    with pytest.raises(ValueError, match="outside"):
        decoder.decode_crops(jpeg, offsets + np.uint64(2**64 - 4), sizes, box, flip, out)
    assert decoder.decode_crops(jpeg, offsets[:0], sizes[:0], box[:0], flip[:0], out[:0]).size == 0


def test_progressive_and_411_are_unsupported(decoder: CropDecoder) -> None:
    image = photograph(64, 64)
    box, size = (0, 0, 64, 64), (32, 32)
    assert decode_crop(decoder, encode(image, progressive=True), box, size)[0] == Status.UNSUPPORTED
    factors_411 = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411]
    jpeg_411 = cv2.imencode(".jpg", image, factors_411)[1].ravel()
    assert decode_crop(decoder, jpeg_411, box, size)[0] == Status.UNSUPPORTED


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_cmyk_and_rgb_are_unsupported(decoder: CropDecoder, mode: str) -> None:
    file = io.BytesIO()
    options = {"keep_rgb": True} if mode == "RGB" else {}
    Image.fromarray(photograph(64, 64)).convert(mode).save(file, "JPEG", **options)
    jpeg = np.frombuffer(file.getvalue(), np.uint8)
    assert decode_crop(decoder, jpeg, (0, 0, 64, 64), (32, 32))[0] == Status.UNSUPPORTED


def test_unknown_segments_and_fill_bytes_are_skipped(decoder: CropDecoder) -> None:
    jpeg = encode(photograph(64, 64), interval=2).tobytes()
    comment = b"\xff\xff\xff\xfe\x00\x10" + bytes(14) + b"\xff\xe7\x00\x04\xff\xda"
    longer = np.frombuffer(jpeg[:2] + comment + jpeg[2:], np.uint8)
    expected = decode_crop(decoder, np.frombuffer(jpeg, np.uint8), (3, 5, 40, 50), (32, 32))[1]
    status, got = decode_crop(decoder, longer, (3, 5, 40, 50), (32, 32))
    assert status == Status.OK
    np.testing.assert_array_equal(got, expected)
    filled = np.frombuffer(jpeg.replace(b"\xff\xd1", b"\xff\xff\xff\xd1"), np.uint8)
    status, got = decode_crop(decoder, filled, (3, 5, 40, 50), (32, 32))
    assert status == Status.OK
    np.testing.assert_array_equal(got, expected)
