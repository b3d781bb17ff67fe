"""From bytes to normalised tensors."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from rebar.beton import BetonFile
from rebar.loading import Loader
from rebar.loading.batch_source import Batch
from rebar.loading.device import Normalizer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return torch.device(request.param)


def random_batch(count: int, height: int, width: int) -> Batch:
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    return Batch(torch.from_numpy(images), torch.arange(count))


def test_values_are_the_plain_formulas(device: torch.device) -> None:
    batch = random_batch(4, 6, 5)
    before = batch.images.clone()
    images, labels = Normalizer(device)(batch)
    shares = batch.images.numpy().astype(np.float64) / 255
    expected = (shares - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(images.cpu().numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert torch.equal(labels.cpu(), batch.labels)
    assert torch.equal(batch.images, before)  # not normalised in place


def test_layout_and_type(device: torch.device) -> None:
    images, labels = Normalizer(device)(random_batch(4, 6, 5))
    assert images.shape == (4, 3, 6, 5)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64
    assert images.device.type == labels.device.type == device.type


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_shorter_types_are_the_rounded_float32(dtype: torch.dtype, device: torch.device) -> None:
    batch = random_batch(4, 6, 5)
    exact, _ = Normalizer(device)(batch)
    images, _ = Normalizer(device, dtype)(batch)
    assert images.dtype == dtype
    assert torch.equal(images, exact.to(dtype))
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_other_means_and_deviations(device: torch.device) -> None:
    batch = random_batch(2, 3, 3)
    images, _ = Normalizer(device, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))(batch)
    assert torch.allclose(images.cpu(), batch.images.permute(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)


def test_every_batch_comes_once_and_in_order(device: torch.device) -> None:
    batches = [random_batch(2, 4, 4)._replace(labels=torch.tensor([number, number])) for number in range(5)]
    normalised = list(Normalizer(device).each(batches))
    assert [labels.tolist() for _, labels in normalised] == [[number, number] for number in range(5)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_works_one_batch_ahead_and_waits_for_its_copies() -> None:
    """What the consumer computes is right, though it never synchronises, and though memory is used again."""
    device, taken = torch.device("cuda"), 0

    def batches() -> Iterator[Batch]:
        nonlocal taken
        for number in range(20):
            taken += 1
            images = torch.full((64, 224, 224, 3), number, dtype=torch.uint8).pin_memory()
            yield Batch(images, torch.full((64,), number).pin_memory())

    normalizer = Normalizer(device, torch.float16, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
    sums = []
    for number, (images, labels) in enumerate(normalizer.each(batches())):
        assert taken == min(number + 2, 20)
        busy = torch.randn(2048, 2048, device=device)
        for _ in range(10):
            busy = busy @ busy / 2048  # keeps the consumer's stream behind the copies
        sums.append((images.float().mean() + 0 * busy.sum(), labels.float().mean()))
        del images, labels
    for number, (mean, label) in enumerate(sums):
        assert mean.item() == pytest.approx(number, abs=1e-3)
        assert label.item() == number


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_loader_with_todevice_gives_what_it_gives_on_the_cpu(textures: BetonFile) -> None:
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


def test_each_takes_one_batch_after_the_other() -> None:
    taken: list[int] = []

    def batches() -> object:
        for count in (2, 0, 3):
            taken.append(count)
            yield random_batch(count, 4, 4)

    normalised = Normalizer(torch.device("cpu")).each(batches())  # type: ignore[arg-type]
    assert taken == []
    assert [len(labels) for _, labels in normalised] == [2, 0, 3]
