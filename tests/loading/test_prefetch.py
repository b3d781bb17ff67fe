"""Buffers, and the Normalizer that copies batches to the device."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray

from rebar.beton import BetonFile
from rebar.loading import Batch, Loader, Normalizer
from rebar.loading.prefetch import BufferPool, split_slices


def address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


# ------------------------------------------------------------------ BufferPool


def test_buffer_pool_reuses_a_released_buffer() -> None:
    pool = BufferPool(capacity=2)
    first = pool.take(1000)
    first_address = address(first)
    assert address(second := pool.take(1000)) != first_address
    del first
    assert address(third := pool.take(1000)) == first_address
    assert address(second) != address(third)


HOLDERS: dict[str, Callable[[NDArray[np.uint8]], Any]] = {
    "reshaped": lambda array: array.reshape(10, 100),
    "slice": lambda array: array[3:7].view(np.uint16),
    "tensor": torch.from_numpy,
    "slice of a tensor": lambda array: torch.from_numpy(array.reshape(10, 100))[2:4, 5],
    "detached tensor": lambda array: torch.from_numpy(array).view(torch.int16).detach(),
    "storage": lambda array: torch.from_numpy(array).untyped_storage(),
    "array of a tensor": lambda array: torch.from_numpy(array)[5:].numpy(),
    "dlpack": lambda array: torch.utils.dlpack.to_dlpack(torch.from_numpy(array)),
    "memoryview": memoryview,
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=list(HOLDERS))
def test_buffer_pool_does_not_reuse_a_buffer_that_is_referenced(hold: Callable[[NDArray[np.uint8]], Any]) -> None:
    pool = BufferPool(capacity=2)
    array = pool.take(1000)
    buffer_address = address(array)
    held = hold(array)
    del array
    gc.collect(0)
    assert address(pool.take(1000)) != buffer_address
    del held
    gc.collect(0)
    assert buffer_address in {address(pool.take(1000)), address(pool.take(1000))}


def test_buffer_pool_reuses_larger_buffers_and_releases_smaller_ones() -> None:
    pool = BufferPool(capacity=2)
    large = address(pool.take(100_000))
    assert address(pool.take(10)) == large
    assert pool.take(200_000).nbytes == 200_000
    assert pool.take(0).nbytes == 0


def test_buffer_pool_keeps_at_most_its_capacity() -> None:
    pool = BufferPool(capacity=2)
    size, process = 8 << 20, psutil.Process()
    before = process.memory_info().rss
    arrays = [pool.take(size) for _ in range(8)]
    for array in arrays:
        array[:] = 1
    assert process.memory_info().rss - before > 7 * size
    del array
    released = {address(array) for array in arrays}
    arrays.clear()
    assert size < process.memory_info().rss - before < 3 * size
    kept = [pool.take(size) for _ in range(2)]
    assert {address(array) for array in kept} <= released


# ------------------------------------------------------------------ split_slices


@pytest.mark.parametrize(("count", "slices"), [(0, 3), (1, 3), (3, 3), (10, 3), (10, 1)])
def test_split_slices_covers_all_items_evenly(count: int, slices: int) -> None:
    parts = [list(range(count))[part] for part in split_slices(count, slices)]
    assert sum(parts, []) == list(range(count))  # noqa: RUF017
    assert len(parts) == max(1, min(count, slices))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# ------------------------------------------------------------------ Normalizer

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
