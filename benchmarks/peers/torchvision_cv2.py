"""torch's DataLoader with OpenCV's decoder and INTER_AREA, as in FFCV."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

from peers import Job
from peers.torch_data import dataloader_epochs, random_box


def decode(path: str, resolution: int) -> Any:
    """Return a random resized crop, uint8 ``[resolution, resolution, 3]``."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    decoded = cv2.imread(path)
    assert decoded is not None
    image = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    top, left, height, width = random_box(*image.shape[:2])
    cropped = image[top : top + height, left : left + width]
    resized = cv2.resize(cropped, (resolution, resolution), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(cv2.flip(resized, 1) if random.random() < 0.5 else resized)


def epochs(job: Job) -> Iterator[Iterable[int]]:
    """Yield an iterable of batch sizes per epoch."""
    return dataloader_epochs(job, decode)
