"""Crops, orders and files equal stock FFCV's."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("ffcv")
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import get_center_crop, get_random_crop
from ffcv.loader import OrderOption as FfcvOrder
from ffcv.writer import DatasetWriter

from rebar.loading import Loader
from rebar.loading.crops import IMAGENET_CENTER_RATIO, CenterCrop, RandomResizedCrop
from rebar.loading.order import OrderOption, order_option
from rebar.loading.rng import RngKeys
from tests.loading.conftest import label_of, number_of, plain_image


def boxes_of(cropper: RandomResizedCrop | CenterCrop, sizes: list[tuple[int, int]]) -> NDArray[np.int64]:
    heights, widths = np.array(sizes, np.int64).T
    return cropper.crops(heights, widths, RngKeys(0, 0, np.arange(len(sizes)))).boxes


@pytest.mark.parametrize("size", [(60, 1000), (1000, 60), (1, 1000), (1000, 1)])
def test_random_resized_crop_falls_back_like_ffcv(size: tuple[int, int]) -> None:
    expected = get_random_crop(*size, (0.9, 1.0), (3 / 4, 4 / 3))
    assert tuple(boxes_of(RandomResizedCrop(scale=(0.9, 1.0)), [size])[0]) == expected


def statistics(boxes: NDArray[np.int64], size: tuple[int, int]) -> dict[str, NDArray[np.float64]]:
    """Return area, aspect ratio and center of crops, relative to the image."""
    top, left, height, width = boxes.T.astype(np.float64)
    return {
        "area": height * width / (size[0] * size[1]),
        "log aspect": np.log(width / height),
        "y": (top + height / 2) / size[0],
        "x": (left + width / 2) / size[1],
    }


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (100, 300), (5, 7)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.35, 1.0)])
def test_random_resized_crop_has_ffcvs_distribution(size: tuple[int, int], scale: tuple[float, float]) -> None:
    count = 20_000
    np.random.seed(0)
    drawn = [get_random_crop(*size, np.array(scale), np.array([3 / 4, 4 / 3])) for _ in range(count)]
    theirs, ours = np.array(drawn), boxes_of(RandomResizedCrop(scale=scale), [size] * count)
    quantiles = np.linspace(0, 1, 11)[1:-1]
    for name, expected in statistics(theirs, size).items():
        values = statistics(ours, size)[name]
        spread = expected.std()
        assert values.mean() == pytest.approx(expected.mean(), abs=0.04 * spread), name
        assert values.std() == pytest.approx(spread, rel=0.04), name
        for q, at in zip(quantiles, np.quantile(expected, quantiles), strict=True):
            assert (values < at).mean() == pytest.approx((expected < at).mean(), abs=0.02), f"{name} {q:.1f}"


@pytest.mark.parametrize("ratio", [IMAGENET_CENTER_RATIO, 1.0, 0.7])
def test_center_crop_equals_ffcv(ratio: float) -> None:
    sizes = [(h, w) for h in range(1, 60) for w in range(1, 60)] + [(1, 1000), (17, 1000), (375, 500), (65535, 65535)]
    for size, box in zip(sizes, boxes_of(CenterCrop(ratio), sizes).tolist(), strict=True):
        if min(size) > 1 or ratio == 1:
            assert box == list(get_center_crop(*size, None, ratio))
        else:  # FFCV's crop of a side of one pixel is empty
            assert box == [(size[0] - 1) // 2, (size[1] - 1) // 2, 1, 1]


def test_order_option_accepts_every_order_of_ffcv() -> None:
    assert order_option(FfcvOrder.RANDOM) is OrderOption.RANDOM
    assert {order.name for order in FfcvOrder} == set(OrderOption.__members__)


def test_loader_reads_a_beton_that_ffcv_wrote(tmp_path: Path) -> None:
    path = tmp_path / "stock.beton"
    dataset = [(plain_image(number), label_of(number)) for number in range(30)]
    writer = DatasetWriter(str(path), {"image": RGBImageField(write_mode="jpg"), "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(dataset)
    loader = Loader(path, 8, 2, order="random", drop_last=False, cropper=RandomResizedCrop(), resolution=16)
    batches = [(number_of(images.numpy()).tolist(), labels.tolist()) for images, labels in loader]
    assert all([label_of(number) for number in numbers] == labels for numbers, labels in batches)
    assert sorted(number for numbers, _ in batches for number in numbers) == list(range(30))
