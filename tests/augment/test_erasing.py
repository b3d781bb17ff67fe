"""Random erasing has torchvision's distribution and result."""

import numpy as np
import torch

from rebar.augment.erasing import erase, erasing_boxes
from rebar.augment.rng import BatchPosition
from rebar.models.torchvision_compat import import_torchvision

import_torchvision()
from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as F  # noqa: E402


def test_erase_equals_torchvision(images: torch.Tensor) -> None:
    images = images.float()
    boxes = erasing_boxes(BatchPosition(0, 7, 0, 6), 40, 32, probability=0.7)
    erased = erase(images.clone(), boxes)
    assert 0 < (boxes[:, 2] > 0).sum() < 6
    for row, (top, left, height, width) in enumerate(boxes.tolist()):
        assert torch.equal(erased[row], F.erase(images[row], top, left, height, width, torch.zeros(1)))


def test_erase_preserves_the_channels_last_layout(images: torch.Tensor) -> None:
    images = images.float().contiguous(memory_format=torch.channels_last)
    erased = erase(images, erasing_boxes(BatchPosition(0, 7, 0, 6), 40, 32, probability=1.0))
    assert erased.is_contiguous(memory_format=torch.channels_last)


def test_erasing_boxes_have_torchvision_distribution() -> None:
    count = 20_000
    ours = erasing_boxes(BatchPosition(5, 1, 0, count), 60, 50, probability=0.25).astype(float)
    assert (ours[:, 0] + ours[:, 2]).max() <= 60
    assert (ours[:, 1] + ours[:, 3]).max() <= 50
    erased = ours[ours[:, 2] > 0]
    assert abs(len(erased) / count - 0.25) < 0.01

    torch.manual_seed(0)
    transform, image = v2.RandomErasing(p=1.0), torch.zeros(3, 60, 50)
    draws = [transform.make_params([image]) for _ in range(3_000)]
    theirs = np.array([[float(d[name]) for name in ("i", "j", "h", "w")] for d in draws])
    assert np.abs(erased.mean(0) - theirs.mean(0)).max() < 1.0
    assert np.abs(erased.std(0) - theirs.std(0)).max() < 1.0
