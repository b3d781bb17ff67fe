"""From bytes to normalised tensors."""

import numpy as np
import pytest
import torch

from rebar.loading.device import Normalizer
from rebar.loading.loader import Batch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return torch.device(request.param)


def random_batch(count: int, height: int, width: int) -> Batch:
    pictures = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    return Batch(torch.from_numpy(pictures), torch.arange(count))


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


def test_each_takes_one_batch_after_the_other() -> None:
    taken: list[int] = []

    def batches() -> object:
        for count in (2, 0, 3):
            taken.append(count)
            yield random_batch(count, 4, 4)

    normalised = Normalizer(torch.device("cpu")).each(batches())  # type: ignore[arg-type]
    assert taken == []
    assert [len(labels) for _, labels in normalised] == [2, 0, 3]
