"""Well-known FFCV pipelines are recognized, run by the native backend, and yield what FFCV yields."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ffcv")
from ffcv.fields.decoders import (
    CenterCropRGBImageDecoder,
    IntDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)
from ffcv.pipeline.operation import Operation
from ffcv.transforms import (
    Convert,
    Cutout,
    NormalizeImage,
    RandomHorizontalFlip,
    Squeeze,
    ToDevice,
    ToTensor,
    ToTorchImage,
)

from rebar.beton import BetonFile
from rebar.loading import CenterCrop, Loader, RandomResizedCrop
from rebar.loading.ffcv import operations
from rebar.loading.ffcv.pipelines import recognize
from tests.loading.ffcv.stock_ffcv import Loader as FfcvLoader

CPU = torch.device("cpu")
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
TYPES = {"image": 2, "label": 1}


def label_pipeline() -> list[Operation]:
    return [IntDecoder(), ToTensor(), Squeeze(), ToDevice(CPU)]


def native_batches(beton: BetonFile, image: Sequence[Any], label: Any = "default", **changes: Any) -> list[Any]:
    pipelines = {"image": image, "label": label_pipeline() if label == "default" else label}
    loader = Loader(str(beton.path), 5, 2, pipelines=pipelines, drop_last=False, **changes)
    assert recognize(pipelines, TYPES) is not None
    return list(loader)


def test_imagenet_pipeline_equals_the_cropper_with_a_flip(textures: BetonFile) -> None:
    pipeline = [
        RandomResizedCropRGBImageDecoder((24, 24), scale=(0.2, 0.9)),
        RandomHorizontalFlip(0.25),
        ToTensor(),
        ToDevice(CPU),
        ToTorchImage(),
        NormalizeImage(MEAN, STD, np.float32),
    ]
    cropper = RandomResizedCrop((0.2, 0.9), flip_probability=0.25)
    plain = Loader(textures.path, 5, cropper=cropper, resolution=24, drop_last=False)
    for (images, labels), expected in zip(native_batches(textures, pipeline), plain, strict=True):
        normalized = ((expected.images.numpy() - MEAN) / STD).transpose(0, 3, 1, 2)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert np.allclose(images.numpy(), normalized, atol=1e-5)
        assert torch.equal(labels, expected.labels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_center_crop_pipeline_equals_stock_ffcvs_loader(dtype: type, noise: BetonFile) -> None:
    def pipelines() -> dict[str, list[Operation]]:
        image = [
            CenterCropRGBImageDecoder((24, 20), 0.8),
            NormalizeImage(MEAN, STD, dtype),
            ToTensor(),
            ToTorchImage(channels_last=False),
        ]
        return {"image": image, "label": [IntDecoder(), ToTensor(), Convert(torch.int32), Squeeze()]}

    theirs = FfcvLoader(str(noise.path), 5, 1, pipelines=pipelines(), drop_last=False)
    ours = Loader(noise.path, 5, 2, pipelines=pipelines(), drop_last=False)
    for (images, labels), (their_images, their_labels) in zip(ours, theirs, strict=True):
        assert images.dtype == their_images.dtype
        assert images.shape == their_images.shape
        tolerance = 2e-3 if dtype is np.float16 else 1e-5
        assert torch.allclose(images.float(), their_images.float(), atol=tolerance)
        assert labels.dtype == their_labels.dtype
        assert torch.equal(labels, their_labels)


def test_loader_with_recognized_pipelines_can_be_pickled_after_an_epoch(textures: BetonFile) -> None:
    image = [
        RandomResizedCropRGBImageDecoder((8, 8)),
        ToTensor(),
        ToTorchImage(),
        NormalizeImage(MEAN, STD, np.float32),
    ]
    pipelines = {"image": image, "label": label_pipeline()}
    assert recognize(pipelines, TYPES) is not None
    loader = Loader(textures.path, 5, 2, pipelines=pipelines)
    list(loader)
    other = pickle.loads(pickle.dumps(loader))
    for found, expected in zip(other, loader, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_default_label_pipeline_and_disabled_label(textures: BetonFile) -> None:
    decoder = [CenterCropRGBImageDecoder((8, 8), 1), ToTensor()]
    (column,) = {labels.shape[1:] for _, labels in native_batches(textures, decoder, label=())}
    assert column == (1,)
    assert all(len(batch) == 1 for batch in native_batches(textures, decoder, label=None))


def test_squeezed_labels_of_a_batch_of_one_keep_their_dimension(textures: BetonFile) -> None:
    decoder = [CenterCropRGBImageDecoder((8, 8), 1), ToTensor()]
    batches = native_batches(textures, decoder, indices=range(6))
    assert [labels.shape for _, labels in batches] == [(5,), (1,)]


def test_changed_output_size_takes_effect_at_the_next_epoch(textures: BetonFile) -> None:
    decoder = RandomResizedCropRGBImageDecoder((8, 8))
    loader = Loader(textures.path, 5, pipelines={"image": [decoder, ToTensor()], "label": None})
    assert {images.shape[1:] for (images,) in loader} == {(8, 8, 3)}
    decoder.output_size = (16, 12)
    assert {images.shape[1:] for (images,) in loader} == {(16, 12, 3)}


def test_modules_and_rebars_operations_are_recognized(textures: BetonFile) -> None:
    pipeline = [
        operations.CenterCrop((8, 8)),
        ToTensor(),
        ToTorchImage(),
        Convert(torch.float32),
        torch.nn.AvgPool2d(2),
    ]
    plain = Loader(textures.path, 5, cropper=CenterCrop(), resolution=8, drop_last=False)
    for (images, _), expected in zip(native_batches(textures, pipeline), plain, strict=True):
        pooled = torch.nn.functional.avg_pool2d(expected.images.permute(0, 3, 1, 2).float(), 2)
        assert torch.equal(images, pooled)


class Subclass(RandomResizedCropRGBImageDecoder):
    """A subclass, which may behave differently."""


@pytest.mark.parametrize(
    "pipelines",
    [
        {},
        {"image": [SimpleRGBImageDecoder(), ToTensor()]},
        {"image": [Subclass((8, 8)), ToTensor()]},
        {"image": [RandomResizedCropRGBImageDecoder((8, 8)), Cutout(4), ToTensor()]},
        {"image": [RandomResizedCropRGBImageDecoder((8, 8)), ToTensor()], "label": [ToTensor(), ToTorchImage()]},
        {"image": [RandomResizedCropRGBImageDecoder((8, 8)), ToTensor()], "other": [ToTensor()]},
        {"image": None},
    ],
)
def test_other_pipelines_are_not_recognized(pipelines: dict[str, Any]) -> None:
    assert recognize(pipelines, TYPES) is None


def test_pipelines_for_further_fields_are_recognized_only_if_those_are_disabled() -> None:
    image = [RandomResizedCropRGBImageDecoder((8, 8)), ToTensor()]
    assert recognize({"image": image}, {**TYPES, "more": 0}) is None
    assert recognize({"image": image, "more": None}, {**TYPES, "more": 0}) is not None
    assert recognize({"label": image}, {"label": 2, "class": 1}) is not None
