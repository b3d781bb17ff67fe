"""torch's DataLoader as most people have it: Pillow and torchvision's first transforms."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

from peers import Job
from peers.torch_data import dataloader_epochs, random_box


def decode(path: str, resolution: int) -> Any:
    """uint8 ``[resolution, resolution, 3]``, resized as torchvision does a PIL image (bilinear, antialiased)."""
    import numpy as np
    import torch
    from PIL import Image

    with Image.open(path) as image:
        image = image.convert("RGB")
    top, left, height, width = random_box(image.height, image.width)
    box = (left, top, left + width, top + height)
    image = image.crop(box).resize((resolution, resolution), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image))


def epochs(job: Job) -> Iterator[Iterable[int]]:
    """Batches of bytes."""
    return dataloader_epochs(job, decode)
