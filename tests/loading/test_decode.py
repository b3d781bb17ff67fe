"""ImageDecoder decodes every kind of image and reports corrupt ones; on_error=replace substitutes them."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rebar.beton import BetonFile
from rebar.beton.format import MODE_JPG, MODE_RAW
from rebar.beton.sidecar import sidecar_path
from rebar.errors import RebarError
from rebar.loading import CenterCrop, CorruptSampleError, CorruptSampleWarning, Loader
from rebar.loading import decode as decode_module
from rebar.loading.crops import Crops
from rebar.loading.decode import ImageDecoder, decode_full_image, new_crop_decoder
from tests.loading.conftest import WriteBeton, label_of, number_of, textured_image

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
    "truncated": jpeg()[:-500],
    "zeros": bytes(100),
    "4:4:4": jpeg(subsampling=0),
}


@dataclass(frozen=True)
class Stored:
    """Images in memory; a StoredImages."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    modes: NDArray[np.uint8]
    heights: NDArray[np.uint16]
    widths: NDArray[np.uint16]
    path: Path = Path("memory")


def stored(names: list[str]) -> Stored:
    contents = [CONTENTS[name] for name in names]
    ends = np.cumsum([len(content) for content in contents]).astype(np.uint64)
    sizes = np.array([len(content) for content in contents], np.uint64)
    return Stored(
        data=np.frombuffer(b"".join(contents), np.uint8),
        offsets=ends - sizes,
        sizes=sizes,
        modes=np.array([MODE_RAW if name == "raw" else MODE_JPG for name in names], np.uint8),
        heights=np.full(len(names), HEIGHT, np.uint16),
        widths=np.full(len(names), WIDTH, np.uint16),
    )


def some_crops(count: int) -> Crops:
    return Crops(np.array([[3, 5, HEIGHT - 7, WIDTH - 9]] * count), np.arange(count) % 2 == 1)


def decode(names: list[str]) -> tuple[NDArray[np.uint8], dict[int, str]]:
    out = np.full((len(names), 32, 32, 3), 77, np.uint8)
    failures = ImageDecoder(HEIGHT, WIDTH).decode(stored(names), np.arange(len(names)), some_crops(len(names)), out)
    return out, {row: error.reason for row, error in failures}


# ------------------------------------------------------------------ ImageDecoder


def test_image_decoder_equals_full_image_decoding_for_every_kind_of_image() -> None:
    names = ["raw", "baseline", "baseline", "progressive", "raw", "restart markers", "4:4:4"]
    out, failures = decode(names)
    assert failures == {}
    expected = np.empty_like(out)
    crops = some_crops(len(names))
    for row in range(len(names)):
        decode_full_image(stored(names), row, crops.boxes[row], bool(crops.flips[row]), expected[row])
    assert np.abs(out.astype(float) - expected).mean(axis=(1, 2, 3)).max() < 1


@pytest.mark.parametrize("available", [True, False])
def test_image_decoder_reports_corrupt_images_with_the_reason(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not available:
        monkeypatch.setattr(decode_module, "new_crop_decoder", lambda *size: None)
    names = ["baseline", "truncated", "progressive", "zeros", "baseline"]
    out, failures = decode(names)
    assert set(failures) == {1, 3}
    assert "JPEG" in failures[3]
    assert np.abs(out[0].astype(float) - out[2]).mean() < 1
    assert out[4].std() > 10


def test_crop_decoder_is_available() -> None:
    assert new_crop_decoder(8, 8) is not None


def test_image_decoder_without_the_crop_decoder_decodes_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, _ = decode(["baseline", "raw"])
    monkeypatch.setattr(decode_module, "new_crop_decoder", lambda *size: None)
    full, failures = decode(["baseline", "raw"])
    assert failures == {}
    assert np.abs(fast.astype(float) - full).mean() < 1


def test_new_crop_decoder_warns_once_if_the_kernel_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise TypeError("no such instruction")

    monkeypatch.setattr("rebar.jpeg.kernel_cache.load_kernel", fail)
    decode_module._crop_decoder_available.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no such instruction"):
            assert new_crop_decoder(8, 8) is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert new_crop_decoder(8, 8) is None
    finally:
        decode_module._crop_decoder_available.cache_clear()


# ------------------------------------------------------------------ on_error

CORRUPT = (3, 19, 20, 37)


def zero_images(beton: BetonFile, samples: tuple[int, ...]) -> None:
    with beton.path.open("r+b") as file:
        for sample in samples:
            file.seek(int(beton.offsets[sample]))
            file.write(bytes(int(beton.sizes[sample])))


@pytest.fixture
def corrupt_beton(write_numbers: WriteBeton) -> Path:
    """Forty JPEGs, four of them overwritten with zeros."""
    beton = write_numbers(40, "jpg")
    zero_images(beton, CORRUPT)
    return beton.path


def make_loader(path: Path, **changes: Any) -> Loader:
    chosen = {"num_workers": 2, "cropper": CenterCrop(), "resolution": 16, "on_error": "replace", **changes}
    return Loader(path, chosen.pop("batch_size", 8), **chosen)


def numbers_and_labels(loader: Loader) -> list[tuple[list[int], list[int]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CorruptSampleWarning)
        return [(number_of(images.numpy()).tolist(), labels.tolist()) for images, labels in loader]


def all_numbers(loader: Loader) -> list[int]:
    return [number for numbers, _ in numbers_and_labels(loader) for number in numbers]


def test_replace_substitutes_a_valid_sample_with_its_own_label(corrupt_beton: Path) -> None:
    loader = make_loader(corrupt_beton)
    batches = numbers_and_labels(loader)
    assert all([label_of(number) for number in numbers] == labels for numbers, labels in batches)
    numbers = np.concatenate([found for found, _ in batches])
    changed = np.flatnonzero(numbers != np.arange(40))
    assert tuple(changed) == CORRUPT
    assert not set(numbers[changed]) & set(CORRUPT)
    assert sorted(loader.corrupt_samples) == list(CORRUPT)


def test_substitute_depends_on_seed_epoch_and_sample_only(corrupt_beton: Path) -> None:
    expected = all_numbers(make_loader(corrupt_beton))
    for changes in ({"num_workers": 1}, {"num_workers": 5}, {"batch_size": 4}, {"batches_ahead": 0}):
        assert all_numbers(make_loader(corrupt_beton, **changes)) == expected
    ranks = [numbers_and_labels(make_loader(corrupt_beton, batch_size=4, rank=rank, world_size=2)) for rank in range(2)]
    assert [n for parts in zip(*ranks, strict=True) for numbers, _ in parts for n in numbers] == expected
    other_epoch = make_loader(corrupt_beton)
    other_epoch.next_epoch = 1
    assert all_numbers(other_epoch) != expected


def test_replace_warns_once_per_corrupt_sample(corrupt_beton: Path) -> None:
    loader = make_loader(corrupt_beton)
    with pytest.warns(CorruptSampleWarning) as caught:
        assert len(list(loader)) + len(list(loader)) == 10
    assert len(caught) == len(CORRUPT)
    assert f"{corrupt_beton}: the image of sample 3, at byte " in str(caught[0].message)


def test_substitutes_come_from_the_given_indices(corrupt_beton: Path) -> None:
    loader = make_loader(corrupt_beton, batch_size=4, indices=[1, 2, 3, 4])
    ((numbers, labels),) = numbers_and_labels(loader)
    assert set(numbers) == {1, 2, 4}
    assert labels == [label_of(number) for number in numbers]


def test_replace_raises_if_every_substitute_is_corrupt(corrupt_beton: Path) -> None:
    loader = make_loader(corrupt_beton, batch_size=2, indices=[19, 20])
    with pytest.raises(CorruptSampleError) as error:
        list(loader)
    assert (error.value.index, error.value.code) == (19, "beton-image-corrupt")


def test_iteration_ends_after_a_corrupt_sample_is_raised(corrupt_beton: Path) -> None:
    loader = make_loader(corrupt_beton, on_error="raise")
    iterator = iter(loader)
    with pytest.raises(CorruptSampleError) as error:
        next(iterator)
    assert error.value.index == 3
    with pytest.raises(StopIteration):
        next(iterator)
    assert loader.corrupt_samples == {}


def test_unknown_on_error_is_rejected(corrupt_beton: Path) -> None:
    with pytest.raises(RebarError, match="on_error: 'skip'") as error:
        make_loader(corrupt_beton, on_error="skip")
    assert error.value.code == "loader-invalid-argument"


def test_corrupt_sample_error_reports_whether_the_sidecars_checksum_matches(corrupt_beton: Path) -> None:
    with pytest.raises(CorruptSampleError, match=r"does not match the sidecar's checksum.*Copy it again"):
        list(make_loader(corrupt_beton, on_error="raise"))
    sidecar_path(corrupt_beton).unlink()
    with pytest.raises(CorruptSampleError, match="Copy the file again, or write it again"):
        list(make_loader(corrupt_beton, on_error="raise"))
