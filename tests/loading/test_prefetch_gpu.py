"""Batches reach the GPU intact while copies and consumer are slow and host memory is reused."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from rebar.beton import BetonFile
from rebar.loading import CenterCrop, Loader
from rebar.loading.prefetch import Batch, Normalizer
from tests.loading.conftest import number_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
SLOW = 20_000_000  # clock cycles: about 10 ms
UNNORMALIZED = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}


class SlowCopies(Normalizer):
    """A Normalizer whose copies start late, long after the host has continued."""

    def __call__(self, batch: Batch, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        torch.cuda._sleep(SLOW)
        return super().__call__(batch, step)


def random_batches(count: int) -> Iterator[Batch]:
    """Yield batches whose host memory is released and overwritten as soon as the next batch is requested."""
    for number in range(count):
        draw = torch.Generator().manual_seed(number)
        images = torch.randint(0, 256, (32, 96, 96, 3), generator=draw, dtype=torch.uint8).pin_memory()
        labels = torch.randint(0, 1000, (32,), generator=draw).pin_memory()
        yield Batch(images, labels)
        del images, labels
        overwrite = torch.empty((32, 96, 96, 3), dtype=torch.uint8, pin_memory=True)
        overwrite.fill_(number)
        del overwrite


@pytest.mark.parametrize("normalizer", [Normalizer, SlowCopies])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_on_a_side_stream_equals_a_synchronous_copy(
    normalizer: Callable[..., Normalizer], dtype: torch.dtype
) -> None:
    device = torch.device("cuda")
    expected = []
    for batch in random_batches(8):
        images, labels = Normalizer(device, dtype)(Batch(batch.images.clone(), batch.labels.clone()))
        torch.cuda.synchronize()
        expected.append((images.cpu(), labels.cpu()))
    results = []
    for images, labels in normalizer(device, dtype).each(random_batches(8)):
        torch.cuda._sleep(SLOW)  # the consumer reads long after the memory is released
        results.append((images + 0, labels + 0))
        del images, labels
        torch.empty_like(results[-1][0]).fill_(float("nan"))  # an early reuse of freed memory would show
    torch.cuda.synchronize()
    for (images, labels), (expected_images, expected_labels) in zip(results, expected, strict=True):
        assert torch.equal(images.cpu(), expected_images)
        assert torch.equal(labels.cpu(), expected_labels)


def test_pinned_memory_of_the_loader_is_not_overwritten_before_it_is_copied(numbers: BetonFile) -> None:
    loader = Loader(
        numbers.path,
        8,
        4,
        seed=1,
        order="random",
        cropper=CenterCrop(),
        resolution=16,
        pin_memory=True,
        batches_ahead=4,
    )
    results, expected = [], []
    for epoch in range(3):
        expected += loader.batch_indices(epoch)
        for images, labels in SlowCopies(torch.device("cuda"), **UNNORMALIZED).each(loader.epoch(epoch)):
            results.append((images + 0, labels + 0))
    torch.cuda.synchronize()
    assert len(results) == len(expected) == 3 * (103 // 8)
    for (images, labels), indices in zip(results, expected, strict=True):
        pixels = images.permute(0, 2, 3, 1).round().to(torch.uint8).cpu().numpy()
        assert number_of(pixels).tolist() == indices.tolist()
        assert labels.cpu().tolist() == numbers.labels[indices].tolist()


def test_pin_memory_pins_images_and_labels(numbers: BetonFile) -> None:
    loader = Loader(numbers.path, 8, 2, cropper=CenterCrop(), resolution=16, pin_memory=True)
    batch = next(iter(loader))
    assert batch.images.is_pinned()
    assert batch.labels.is_pinned()


def test_augment_runs_on_the_device_with_the_step() -> None:
    seen = []

    def augment(images: torch.Tensor, step: int) -> torch.Tensor:
        seen.append((images.device.type, images.dtype, tuple(images.shape), step))
        return 255 - images

    original = [images.cpu() for images, _ in Normalizer(torch.device("cuda"), **UNNORMALIZED).each(random_batches(3))]
    changed = Normalizer(torch.device("cuda"), augment=augment, **UNNORMALIZED).each(random_batches(3), first_step=5)
    for before, (after, _) in zip(original, changed, strict=True):
        assert np.allclose(255 - before.numpy(), after.cpu().numpy(), atol=1e-3)
    assert seen == [("cuda", torch.uint8, (32, 3, 96, 96), step) for step in (5, 6, 7)]
