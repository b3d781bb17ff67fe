"""Loader yields the right images with the right labels for any number of threads and ranks, and raises errors."""

import dataclasses
import os
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rebar.beton import BetonFile
from rebar.errors import RebarError
from rebar.loading.crops import CenterCrop, Cropper, RandomResizedCrop
from rebar.loading.decode import CorruptSampleError, decode_full_image
from rebar.loading.loader import Loader
from rebar.loading.order import OrderOption
from rebar.loading.prefetch import Batch
from rebar.loading.rng import RngKeys
from tests.loading.conftest import WriteBeton, label_of, number_of, textured_image

RESOLUTION = 16


def make_loader(beton: BetonFile, *, cropper: Cropper | None = None, **changes: Any) -> Loader:
    chosen = {"batch_size": 8, "num_workers": 2, "order": OrderOption.RANDOM, "drop_last": False, **changes}
    return Loader(beton.path, cropper=cropper or RandomResizedCrop(), **chosen)


def numbers_and_labels(batches: Iterator[Batch]) -> list[tuple[list[int], list[int]]]:
    return [(number_of(batch.images.numpy()).tolist(), batch.labels.tolist()) for batch in batches]


def same_batches(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in zip(first, second, strict=True)
    )


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rebar-loader")]


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    yield
    assert decoding_threads() == []


# ------------------------------------------------------------------ images and labels


def test_epoch_has_every_sample_with_its_label(numbers: BetonFile) -> None:
    batches = numbers_and_labels(make_loader(numbers).epoch(0, RESOLUTION))
    assert all([label_of(number) for number in found] == labels for found, labels in batches)
    assert sorted(number for found, _ in batches for number in found) == list(range(103))
    assert [len(labels) for _, labels in batches] == [8] * 12 + [7]


def test_sequential_batches_are_in_file_order(numbers: BetonFile) -> None:
    loader = make_loader(numbers, cropper=CenterCrop(), order=OrderOption.SEQUENTIAL, drop_last=True)
    batches = numbers_and_labels(loader.epoch(0, RESOLUTION))
    assert [found for found, _ in batches] == np.arange(96).reshape(12, 8).tolist()
    assert len(loader) == 12


def test_batches_are_uint8_images_and_int64_labels(numbers: BetonFile) -> None:
    batch = next(make_loader(numbers).epoch(0, RESOLUTION))
    assert batch.images.shape == (8, RESOLUTION, RESOLUTION, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.dtype == torch.int64


@pytest.mark.parametrize("cropper", [RandomResizedCrop(), CenterCrop()])
def test_crop_of_a_raw_image_equals_opencv(cropper: Cropper, noise: BetonFile) -> None:
    full_images = [noise.image_bytes(i).reshape(noise.heights[i], noise.widths[i], 3) for i in range(12)]
    for image, expected in loaded_and_expected(noise, cropper, full_images):
        assert np.array_equal(image, expected)


@pytest.mark.parametrize("cropper", [RandomResizedCrop(), CenterCrop()])
def test_crop_of_a_jpeg_equals_opencv_within_one_level(cropper: Cropper, textures: BetonFile) -> None:
    full_images = [cv2.imdecode(textures.image_bytes(i), cv2.IMREAD_COLOR)[..., ::-1] for i in range(12)]
    assert all(np.abs(full - textured_image(i).astype(float)).mean() < 5 for i, full in enumerate(full_images))
    for image, expected in loaded_and_expected(textures, cropper, full_images):
        assert np.abs(image - expected.astype(float)).mean() < 1


def loaded_and_expected(
    beton: BetonFile, cropper: Cropper, full_images: list[NDArray[np.uint8]]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield every image of an epoch, and the same crop made by OpenCV from the full image."""
    loader = make_loader(beton, cropper=cropper, seed=5)
    for indices, batch in zip(loader.batch_indices(2), loader.epoch(2, 24), strict=True):
        heights, widths = (sides[indices].astype(np.int64) for sides in (beton.heights, beton.widths))
        crops = cropper.crops(heights, widths, RngKeys(5, 2, indices))
        for index, box, flip, image in zip(indices, crops.boxes, crops.flips, batch.images.numpy(), strict=True):
            top, left, height, width = box
            crop = np.ascontiguousarray(full_images[index][top : top + height, left : left + width])
            resized = cv2.resize(crop, (24, 24), interpolation=cv2.INTER_AREA)
            yield image, cv2.flip(resized, 1) if flip else resized


# ------------------------------------------------------------------ independence of threads and ranks


@pytest.mark.parametrize(
    "changes",
    [
        {"num_workers": 1},
        {"num_workers": 5},
        {"num_workers": 20},
        {"batches_ahead": 0},
        {"os_cache": False},
        {"os_cache": True},
    ],
)
def test_batches_do_not_depend_on_threads_prefetching_or_read_ahead(
    changes: dict[str, Any], textures: BetonFile
) -> None:
    expected = list(make_loader(textures, batch_size=5).epoch(1, RESOLUTION))
    assert same_batches(list(make_loader(textures, batch_size=5, **changes).epoch(1, RESOLUTION)), expected)


@pytest.mark.parametrize("order", list(OrderOption))
def test_loader_without_os_cache_requests_every_image_before_its_batch(
    order: OrderOption, numbers: BetonFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, size, advice: requested.append((start, start + size)))
    loader = make_loader(numbers, os_cache=False, order=order, num_workers=1)
    for indices, _ in zip(loader.batch_indices(0), loader.epoch(0, RESOLUTION), strict=True):
        for offset, size in zip(numbers.offsets[indices].tolist(), numbers.sizes[indices].tolist(), strict=True):
            assert any(start <= offset and offset + size <= end for start, end in requested)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_together_yield_the_same_global_batches(world_size: int, drop_last: bool, textures: BetonFile) -> None:
    single = make_loader(textures, batch_size=8, drop_last=drop_last)
    ranks = [
        make_loader(textures, batch_size=8 // world_size, world_size=world_size, rank=rank, drop_last=drop_last)
        for rank in range(world_size)
    ]
    assert {len(loader) for loader in ranks} == {len(single)}
    epochs = [list(loader.epoch(3, RESOLUTION)) for loader in ranks]
    together = [Batch(*map(torch.cat, zip(*parts, strict=True))) for parts in zip(*epochs, strict=True)]
    assert same_batches(together, list(single.epoch(3, RESOLUTION)))


def test_rank_without_samples_gets_an_empty_batch(write_numbers: WriteBeton) -> None:
    loader = make_loader(write_numbers(5), batch_size=2, world_size=2, rank=1)
    assert [len(batch.labels) for batch in loader.epoch(0, RESOLUTION)] == [2, 0]


def test_epochs_and_seeds_differ_and_are_reproducible(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    first, second, repeated = (numbers_and_labels(loader.epoch(epoch, RESOLUTION)) for epoch in (0, 1, 0))
    assert first == repeated != second
    assert numbers_and_labels(make_loader(numbers, seed=1).epoch(0, RESOLUTION)) != first


def test_crops_differ_between_epochs(textures: BetonFile) -> None:
    loader = make_loader(textures, order=OrderOption.SEQUENTIAL)
    first, second = (torch.cat([batch.images for batch in loader.epoch(epoch, RESOLUTION)]) for epoch in (0, 1))
    assert (first != second).flatten(1).any(dim=1).all()


# ------------------------------------------------------------------ iteration


def test_resolution_may_change_between_epochs(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    for epoch, resolution in enumerate((8, 32, 1)):
        assert {batch.images.shape[1:] for batch in loader.epoch(epoch, resolution)} == {(resolution, resolution, 3)}


def test_threads_end_with_the_epoch_or_when_it_is_abandoned(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    epoch = loader.epoch(0, RESOLUTION)
    next(epoch)
    assert decoding_threads()
    epoch.close()  # type: ignore[attr-defined]
    assert decoding_threads() == []
    for _ in loader.epoch(0, RESOLUTION):
        break
    assert decoding_threads() == []
    assert len(list(loader.epoch(0, RESOLUTION))) == len(loader)
    assert decoding_threads() == []


def test_two_interleaved_loaders_are_independent(numbers: BetonFile, textures: BetonFile) -> None:
    loaders = [make_loader(numbers, batch_size=4), make_loader(textures, batch_size=2)]
    alone = [list(loader.epoch(0, RESOLUTION))[:6] for loader in loaders]
    interleaved = zip(*(loader.epoch(0, RESOLUTION) for loader in loaders), strict=False)
    pairs = list(islice(interleaved, 6))
    for number in (0, 1):
        assert same_batches([pair[number] for pair in pairs], alone[number])


def test_batch_is_not_overwritten_when_the_next_ones_arrive(textures: BetonFile) -> None:
    held, copies = [], []
    for batch in make_loader(textures, batch_size=3, batches_ahead=1).epoch(0, RESOLUTION):
        held.append(batch)
        copies.append(Batch(batch.images.clone(), batch.labels.clone()))
    assert same_batches(held, copies)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("num_workers", [1, 3])
def test_corrupt_image_is_raised_on_its_batch_with_file_and_offset(num_workers: int, write_numbers: WriteBeton) -> None:
    beton = write_numbers(40, "jpg")
    with beton.path.open("r+b") as file:
        file.seek(int(beton.offsets[19]))
        file.write(bytes(int(beton.sizes[19])))
    epoch = make_loader(beton, order=OrderOption.SEQUENTIAL, num_workers=num_workers).epoch(0, RESOLUTION)
    valid = numbers_and_labels(islice(epoch, 2))
    assert [found for found, _ in valid] == np.arange(16).reshape(2, 8).tolist()
    with pytest.raises(CorruptSampleError) as error:
        next(epoch)
    assert f"{beton.path}: the image of sample 19, at byte {beton.offsets[19]}, " in str(error.value)
    assert error.value.code == "beton-image-corrupt"


def test_image_of_another_size_than_in_the_table_is_rejected(textures: BetonFile) -> None:
    taller = dataclasses.replace(textures, heights=textures.heights + np.uint16(1))
    out = np.empty((8, 8, 3), np.uint8)
    with pytest.raises(CorruptSampleError, match=r"sample 2, .* 68x86 px.*68x87"):
        decode_full_image(taller, 2, np.array([0, 0, 8, 8]), False, out)


def test_fewer_samples_than_a_global_batch_are_rejected(write_numbers: WriteBeton) -> None:
    beton = write_numbers(15)
    with pytest.raises(RebarError, match=r"\(15\) .* 2 x 8") as error:
        make_loader(beton, rank=0, world_size=2, drop_last=True)
    assert error.value.code == "loader-too-few-samples"
    assert len(make_loader(beton, rank=0, world_size=2)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0},
        {"copies": 0},
        {"batches_ahead": -1},
        {"indices": []},
        {"indices": [0, 103]},
        {"indices": [True]},
        {"pipelines": {"image": []}},
    ],
    ids=str,
)
def test_invalid_arguments_are_rejected(changes: dict[str, Any], numbers: BetonFile) -> None:
    with pytest.raises(RebarError, match=next(iter(changes))) as error:
        make_loader(numbers, **changes)
    assert error.value.code == "loader-invalid-argument"


def test_epoch_without_a_resolution_is_rejected(numbers: BetonFile) -> None:
    with pytest.raises(RebarError, match="resolution") as error:
        next(make_loader(numbers).epoch(0))
    assert error.value.code == "loader-invalid-argument"
