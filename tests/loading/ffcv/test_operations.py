"""Rebar's decoders in FFCV's own loader yield the images of Rebar's Loader."""

from typing import Any

import numba
import pytest
import torch

pytest.importorskip("ffcv")
from ffcv.fields.decoders import IntDecoder
from ffcv.loader import OrderOption
from ffcv.transforms import Cutout, Squeeze, ToTensor

from rebar.beton import BetonFile
from rebar.loading import CorruptSampleWarning, Loader, crops
from rebar.loading.ffcv.operations import CenterCrop, RandomResizedCrop
from tests.loading.conftest import WriteBeton
from tests.loading.ffcv.stock_ffcv import Loader as FfcvLoader


def stock(beton: BetonFile, decoder: Any, *, num_workers: int = 2, os_cache: bool = True) -> FfcvLoader:
    pipelines = {"image": [decoder, ToTensor()], "label": [IntDecoder(), ToTensor(), Squeeze()]}
    order = OrderOption.RANDOM
    return FfcvLoader(str(beton.path), 5, num_workers, os_cache, order, seed=0, pipelines=pipelines, drop_last=False)


def sorted_images(loader: Any) -> list[tuple[int, torch.Tensor]]:
    """Return all images, sorted by label and content: the order of the two loaders differs."""
    found = [
        (int(label), image.clone()) for images, labels in loader for image, label in zip(images, labels, strict=True)
    ]
    return sorted(found, key=lambda pair: (pair[0], pair[1].numpy().tobytes()))


def same(first: list[tuple[int, torch.Tensor]], second: list[tuple[int, torch.Tensor]]) -> bool:
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(first, second, strict=True))


@pytest.mark.parametrize(("num_workers", "os_cache"), [(1, True), (2, False)])
def test_random_resized_crop_in_ffcvs_loader_equals_rebars_loader_every_epoch(
    num_workers: int, os_cache: bool, numbers: BetonFile, textures: BetonFile
) -> None:
    for beton in (numbers, textures):
        decoder = RandomResizedCrop((24, 16), (0.1, 1), flip_prob=0.5, seed=7)
        theirs = stock(beton, decoder, num_workers=num_workers, os_cache=os_cache)
        ours = Loader(beton.path, 5, seed=7, drop_last=False, pipelines={"image": [decoder, ToTensor()]})
        for _ in range(2):
            assert same(sorted_images(theirs), sorted_images(ours))


def test_center_crop_in_ffcvs_loader_equals_rebars_loader(textures: BetonFile) -> None:
    ours = Loader(textures.path, 5, cropper=crops.CenterCrop(0.75), resolution=24, drop_last=False)
    assert same(sorted_images(stock(textures, CenterCrop((24, 24), 0.75))), sorted_images(ours))


def test_decoder_epoch_selects_the_crops_of_that_epoch(textures: BetonFile) -> None:
    first, second = (RandomResizedCrop((24, 24), flip_prob=0.5) for _ in range(2))
    loader = stock(textures, first)
    epochs = [sorted_images(loader) for _ in range(3)]
    second.epoch = 2
    assert same(sorted_images(stock(textures, second)), epochs[2])
    assert not same(epochs[0], epochs[2])


def test_decoder_output_size_may_change_between_epochs(textures: BetonFile) -> None:
    decoder = RandomResizedCrop((24, 24))
    loader = stock(textures, decoder)
    assert {image.shape for _, image in sorted_images(loader)} == {(24, 24, 3)}
    decoder.output_size = (16, 32)
    assert {image.shape for _, image in sorted_images(loader)} == {(16, 32, 3)}


def test_corrupt_image_becomes_black_with_a_warning(write_numbers: WriteBeton) -> None:
    beton = write_numbers(12, "jpg")
    with beton.path.open("r+b") as file:
        file.seek(int(beton.offsets[7]))
        file.write(bytes(int(beton.sizes[7])))
    decoder = CenterCrop((8, 8))
    with pytest.warns(CorruptSampleWarning, match="the image of sample 7 "):
        images = sorted_images(stock(beton, decoder, num_workers=1))
    assert [bool(image.any()) for _, image in images].count(False) == 1
    assert list(decoder.corrupt_samples) == [7]


def test_decoders_run_in_an_ffcv_graph_with_other_operations(textures: BetonFile) -> None:
    decoder = RandomResizedCrop((24, 24), flip_prob=0.5)
    loader = Loader(textures.path, 5, 2, pipelines={"image": [decoder, Cutout(0), ToTensor()]}, drop_last=False)
    plain = Loader(textures.path, 5, cropper=crops.RandomResizedCrop(), resolution=24, drop_last=False)
    for (images, _), expected in zip(loader, plain, strict=True):
        assert torch.equal(images, expected.images)


def test_stock_loader_preserves_numbas_byte_array_type(textures: BetonFile) -> None:
    content = numba.uint8[::1]
    for _ in stock(textures, CenterCrop((8, 8), 1.0)):
        pass
    assert content.mutable
