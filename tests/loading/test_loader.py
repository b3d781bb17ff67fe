"""Batches hold the right images with the right labels, whoever decodes them, and errors come in time."""

import dataclasses
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
from numpy.typing import NDArray

from rebar.beton import BetonFile
from rebar.errors import RebarError
from rebar.loading.batch_source import Batch
from rebar.loading.crops import CenterCrop, Cropper, RandomResizedCrop
from rebar.loading.decode import CorruptSampleError, decode_whole
from rebar.loading.loader import Loader
from rebar.loading.order import OrderOption
from rebar.loading.rng import RngKeys
from tests.loading.conftest import WriteBeton, label_of, number_of, plain_image, textured_image

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
def no_thread_is_left_behind() -> Iterator[None]:
    yield
    assert decoding_threads() == []


# ------------------------------------------------------------------ the right images


def test_labels_belong_to_their_images_and_none_is_lost(numbers: BetonFile) -> None:
    batches = numbers_and_labels(make_loader(numbers).epoch(0, RESOLUTION))
    assert all([label_of(number) for number in found] == labels for found, labels in batches)
    assert sorted(number for found, _ in batches for number in found) == list(range(103))
    assert [len(labels) for _, labels in batches] == [8] * 12 + [7]


def test_unshuffled_batches_are_in_the_files_order(numbers: BetonFile) -> None:
    loader = make_loader(numbers, cropper=CenterCrop(), order=OrderOption.SEQUENTIAL, drop_last=True)
    batches = numbers_and_labels(loader.epoch(0, RESOLUTION))
    assert [found for found, _ in batches] == np.arange(96).reshape(12, 8).tolist()
    assert len(loader) == 12


def test_batches_are_images_of_bytes(numbers: BetonFile) -> None:
    batch = next(make_loader(numbers).epoch(0, RESOLUTION))
    assert batch.images.shape == (8, RESOLUTION, RESOLUTION, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.dtype == torch.int64


@pytest.mark.parametrize("cropper", [RandomResizedCrop(), CenterCrop()])
def test_a_raw_image_is_the_resized_part_of_the_whole(cropper: Cropper, noise: BetonFile) -> None:
    wholes = [noise.image_bytes(i).reshape(noise.heights[i], noise.widths[i], 3) for i in range(12)]
    for image, expected in loaded_and_expected(noise, cropper, wholes):
        assert np.array_equal(image, expected)


@pytest.mark.parametrize("cropper", [RandomResizedCrop(), CenterCrop()])
def test_a_jpeg_is_the_resized_part_of_the_whole(cropper: Cropper, textures: BetonFile) -> None:
    wholes = [cv2.imdecode(textures.image_bytes(i), cv2.IMREAD_COLOR)[..., ::-1] for i in range(12)]
    assert all(np.abs(whole - textured_image(i).astype(float)).mean() < 5 for i, whole in enumerate(wholes))
    for image, expected in loaded_and_expected(textures, cropper, wholes):
        assert np.abs(image - expected.astype(float)).mean() < 1


def loaded_and_expected(
    beton: BetonFile, cropper: Cropper, wholes: list[NDArray[np.uint8]]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Every image of an epoch, and the same cut, resized and mirrored by OpenCV from the whole one."""
    loader = make_loader(beton, cropper=cropper, seed=5)
    for indices, batch in zip(loader.batch_indices(2), loader.epoch(2, 24), strict=True):
        heights, widths = (sides[indices].astype(np.int64) for sides in (beton.heights, beton.widths))
        crops = cropper.crops(heights, widths, RngKeys(5, 2, indices))
        for index, box, flip, image in zip(indices, crops.boxes, crops.flips, batch.images.numpy(), strict=True):
            top, left, height, width = box
            part = np.ascontiguousarray(wholes[index][top : top + height, left : left + width])
            resized = cv2.resize(part, (24, 24), interpolation=cv2.INTER_AREA)
            yield image, cv2.flip(resized, 1) if flip else resized


def test_a_beton_of_stock_ffcv_is_read(tmp_path: Path) -> None:
    path = tmp_path / "stock.beton"
    dataset = [(plain_image(number), label_of(number)) for number in range(30)]
    writer = DatasetWriter(str(path), {"image": RGBImageField(write_mode="jpg"), "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(dataset)
    batches = numbers_and_labels(make_loader(BetonFile.open(path)).epoch(0, RESOLUTION))
    assert all([label_of(number) for number in found] == labels for found, labels in batches)
    assert sorted(number for found, _ in batches for number in found) == list(range(30))


# ------------------------------------------------------------------ whoever decodes them


@pytest.mark.parametrize(
    "changes",
    [{"num_workers": 1}, {"num_workers": 5}, {"num_workers": 20}, {"batches_ahead": 0}, {"os_cache": False}],
)
def test_how_it_is_done_does_not_change_a_batch(changes: dict[str, Any], textures: BetonFile) -> None:
    usual = list(make_loader(textures, batch_size=5).epoch(1, RESOLUTION))
    assert same_batches(list(make_loader(textures, batch_size=5, **changes).epoch(1, RESOLUTION)), usual)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_together_make_the_same_global_batches(world_size: int, drop_last: bool, textures: BetonFile) -> None:
    alone = make_loader(textures, batch_size=8, drop_last=drop_last, cropper=RandomResizedCrop())
    ranks = [
        make_loader(textures, batch_size=8 // world_size, world_size=world_size, rank=rank, drop_last=drop_last)
        for rank in range(world_size)
    ]
    assert {len(loader) for loader in ranks} == {len(alone)}
    epochs = [list(loader.epoch(3, RESOLUTION)) for loader in ranks]
    together = [Batch(*map(torch.cat, zip(*parts, strict=True))) for parts in zip(*epochs, strict=True)]
    assert same_batches(together, list(alone.epoch(3, RESOLUTION)))


def test_a_rank_without_samples_gets_an_empty_batch(write_numbers: WriteBeton) -> None:
    loader = make_loader(write_numbers(5), batch_size=2, world_size=2, rank=1)
    assert [len(batch.labels) for batch in loader.epoch(0, RESOLUTION)] == [2, 0]


def test_epochs_and_seeds_differ_and_repeat(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    first, second, again = (numbers_and_labels(loader.epoch(epoch, RESOLUTION)) for epoch in (0, 1, 0))
    assert first == again != second
    assert numbers_and_labels(make_loader(numbers, seed=1).epoch(0, RESOLUTION)) != first


def test_images_are_cropped_anew_in_every_epoch(textures: BetonFile) -> None:
    loader = make_loader(textures, order=OrderOption.SEQUENTIAL)
    first, second = (torch.cat([batch.images for batch in loader.epoch(epoch, RESOLUTION)]) for epoch in (0, 1))
    assert (first != second).flatten(1).any(dim=1).all()


# ------------------------------------------------------------------ coming and going


def test_the_resolution_may_change_between_epochs(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    for epoch, resolution in enumerate((8, 32, 1)):
        assert {batch.images.shape[1:] for batch in loader.epoch(epoch, resolution)} == {(resolution, resolution, 3)}


def test_threads_end_with_the_epoch_and_when_it_is_left(numbers: BetonFile) -> None:
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


def test_two_at_once_do_not_disturb_each_other(numbers: BetonFile, textures: BetonFile) -> None:
    loaders = [make_loader(numbers, batch_size=4), make_loader(textures, batch_size=2)]
    alone = [list(loader.epoch(0, RESOLUTION))[:6] for loader in loaders]
    in_turn = zip(*(loader.epoch(0, RESOLUTION) for loader in loaders), strict=False)
    pairs = list(islice(in_turn, 6))
    for number in (0, 1):
        assert same_batches([pair[number] for pair in pairs], alone[number])


def test_a_batch_stays_as_it_was_when_the_next_one_comes(textures: BetonFile) -> None:
    kept, copies = [], []
    for batch in make_loader(textures, batch_size=3).epoch(0, RESOLUTION):
        kept.append(batch)
        copies.append(Batch(batch.images.clone(), batch.labels.clone()))
    assert same_batches(kept, copies)


# ------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_corrupt_image_is_named_at_its_batch(num_workers: int, write_numbers: WriteBeton) -> None:
    beton = write_numbers(40, "jpg")
    with beton.path.open("r+b") as file:
        file.seek(int(beton.offsets[19]))
        file.write(bytes(int(beton.sizes[19])))
    epoch = make_loader(beton, order=OrderOption.SEQUENTIAL, num_workers=num_workers).epoch(0, RESOLUTION)
    good = numbers_and_labels(islice(epoch, 2))
    assert [found for found, _ in good] == np.arange(16).reshape(2, 8).tolist()
    with pytest.raises(CorruptSampleError) as refused:
        next(epoch)
    assert f"{beton.path}: the image of sample 19, at byte {beton.offsets[19]}, cannot be" in str(refused.value)


def test_a_image_of_another_size_than_the_file_says_is_refused(textures: BetonFile) -> None:
    taller = dataclasses.replace(textures, heights=textures.heights + np.uint16(1))
    out = np.empty((8, 8, 3), np.uint8)
    with pytest.raises(CorruptSampleError, match=r"sample 2, .* is 68x86 px, but the table says 68x87"):
        decode_whole(taller, 2, np.array([0, 0, 8, 8]), False, out)


def test_too_few_samples_for_a_global_batch(write_numbers: WriteBeton) -> None:
    beton = write_numbers(15)
    with pytest.raises(RebarError, match=r"holds 15 samples, less than one global batch of 2 x 8: choose a smaller"):
        make_loader(beton, rank=0, world_size=2, drop_last=True)
    assert len(make_loader(beton, rank=0, world_size=2)) == 1
