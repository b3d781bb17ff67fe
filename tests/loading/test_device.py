"""Normalizer moves and normalizes batches; read_statistics reads and validates channel statistics."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rebar.beton import BetonFile
from rebar.beton.verify import measure_stats
from rebar.errors import RebarError
from rebar.loading import Batch, CenterCrop, Loader
from rebar.loading.device import IMAGENET_MEAN, IMAGENET_STD, ChannelStatistics, Normalizer, read_statistics

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device(request.param)


def random_batch(count: int, height: int, width: int) -> Batch:
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    return Batch(torch.from_numpy(images), torch.arange(count))


def test_normalizer_subtracts_the_mean_and_divides_by_the_std(device: torch.device) -> None:
    batch = random_batch(4, 6, 5)
    before = batch.images.clone()
    images, labels = Normalizer(device)(batch)
    scaled = batch.images.numpy().astype(np.float64) / 255
    expected = (scaled - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(images.cpu().numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert torch.equal(labels.cpu(), batch.labels)
    assert torch.equal(batch.images, before)  # not normalized in place


def test_normalizer_returns_float32_in_channels_last_layout(device: torch.device) -> None:
    images, labels = Normalizer(device)(random_batch(4, 6, 5))
    assert images.shape == (4, 3, 6, 5)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64
    assert images.device.type == labels.device.type == device.type


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_normalizer_rounds_half_precision_once_from_float32(dtype: torch.dtype, device: torch.device) -> None:
    batch = random_batch(4, 6, 5)
    exact, _ = Normalizer(device)(batch)
    images, _ = Normalizer(device, dtype)(batch)
    assert images.dtype == dtype
    assert torch.equal(images, exact.to(dtype))
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_normalizer_uses_the_given_mean_and_std(device: torch.device) -> None:
    batch = random_batch(2, 3, 3)
    images, _ = Normalizer(device, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))(batch)
    assert torch.allclose(images.cpu(), batch.images.permute(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)


def test_each_yields_every_batch_once_and_in_order(device: torch.device) -> None:
    batches = [random_batch(2, 4, 4)._replace(labels=torch.tensor([number, number])) for number in range(5)]
    normalized = list(Normalizer(device).each(batches))
    assert [labels.tolist() for _, labels in normalized] == [[number, number] for number in range(5)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_each_on_a_gpu_works_one_batch_ahead_and_waits_for_its_copies() -> None:
    """The consumer never synchronizes, and memory is reused, but its results are correct."""
    device, consumed = torch.device("cuda"), 0

    def batches() -> Iterator[Batch]:
        nonlocal consumed
        for number in range(20):
            consumed += 1
            images = torch.full((64, 224, 224, 3), number, dtype=torch.uint8).pin_memory()
            yield Batch(images, torch.full((64,), number).pin_memory())

    normalizer = Normalizer(device, torch.float16, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
    sums = []
    for number, (images, labels) in enumerate(normalizer.each(batches())):
        assert consumed == min(number + 2, 20)
        busy = torch.randn(2048, 2048, device=device)
        for _ in range(10):
            busy = busy @ busy / 2048  # the consumer's stream falls behind the copies
        sums.append((images.float().mean() + 0 * busy.sum(), labels.float().mean()))
        del images, labels
    for number, (mean, label) in enumerate(sums):
        assert mean.item() == pytest.approx(number, abs=1e-3)
        assert label.item() == number


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_loader_with_todevice_equals_loader_on_the_cpu(textures: BetonFile) -> None:
    pytest.importorskip("ffcv")
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.transforms import NormalizeImage, ToDevice, ToTensor, ToTorchImage

    def batches(device: str) -> list[torch.Tensor]:
        normalize = NormalizeImage(np.full(3, 127.0), np.full(3, 64.0), np.float16)
        image = [RandomResizedCropRGBImageDecoder((32, 32)), ToTensor(), ToDevice(torch.device(device))]
        pipelines = {"image": [*image, ToTorchImage(), normalize], "label": None}
        return [images for (images,) in Loader(textures.path, 3, 2, pipelines=pipelines)]

    for on_gpu, on_cpu in zip(batches("cuda"), batches("cpu"), strict=True):
        assert on_gpu.is_cuda
        assert torch.allclose(on_gpu.cpu().float(), on_cpu.float(), atol=2e-3)


def test_each_on_the_cpu_is_lazy() -> None:
    taken: list[int] = []

    def batches() -> object:
        for count in (2, 0, 3):
            taken.append(count)
            yield random_batch(count, 4, 4)

    normalized = Normalizer(torch.device("cpu")).each(batches())  # type: ignore[arg-type]
    assert taken == []
    assert [len(labels) for _, labels in normalized] == [2, 0, 3]


# ------------------------------------------------------------------ channel statistics


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_read_statistics_without_a_file_returns_imagenet_values() -> None:
    assert read_statistics("") == ChannelStatistics(IMAGENET_MEAN, IMAGENET_STD)


def test_read_statistics_accepts_both_scales(tmp_path: Path) -> None:
    unit = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "num_samples": 3}
    bytes_ = {name: [value * 255 for value in unit[name]] for name in ("mean", "std")}  # type: ignore[union-attr]
    from_unit, from_bytes = (read_statistics(write_json(tmp_path / "s.json", content)) for content in (unit, bytes_))
    assert from_unit == ChannelStatistics((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert (*from_bytes.mean, *from_bytes.std) == pytest.approx((*from_unit.mean, *from_unit.std))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"mean": [0.5, 0.4, 0.3]}, "'std'"),
        ({"mean": [0.5, 0.4], "std": [1, 1, 1]}, "'mean'"),
        ({"mean": [0.5, 0.4, "x"], "std": [1, 1, 1]}, "'mean'"),
        ([1, 2], "'mean'"),
        ({"mean": [0.5, 0.4, 0.3], "std": [0.2, 0, 0.2]}, "'std'"),
    ],
    ids=str,
)
def test_read_statistics_rejects_invalid_files(content: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(RebarError, match=named) as error:
        read_statistics(write_json(tmp_path / "s.json", content))
    assert error.value.code == "stats-file-invalid"
    with pytest.raises(RebarError, match=r"none\.json") as error:
        read_statistics(tmp_path / "none.json")
    assert error.value.code == "stats-file-invalid"


def test_read_statistics_reads_what_measure_stats_writes(textures: BetonFile, tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    path.write_text(measure_stats(textures.path, num_threads=1).to_json())
    found = read_statistics(path)
    loader = Loader(textures.path, 1, 1, cropper=CenterCrop(1.0), resolution=96)
    means = [batch.images.numpy().mean((0, 1, 2)) / 255 for batch in loader]
    np.testing.assert_allclose(found.mean, np.mean(means, axis=0), atol=0.03)
