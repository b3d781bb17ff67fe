"""torch's DataLoader in its most common form: Pillow and torchvision's v1 transforms."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

from peers import Job
from peers.torch_data import dataloader_epochs, random_box


def decode(path: str, resolution: int) -> Any:
    """Return a random resized crop, uint8 ``[resolution, resolution, 3]``, bilinear with antialiasing."""
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
    """Yield an iterable of batch sizes per epoch."""
    return dataloader_epochs(job, decode)
