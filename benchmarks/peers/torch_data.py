"""Code shared by the peers that use torch's DataLoader."""

import os
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from peers import Job


def read_folder(folder: str) -> list[tuple[str, int]]:
    """Return the files and labels of a folder with one folder per class, sorted."""
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    return [(str(path), label) for label, name in enumerate(classes) for path in sorted(Path(folder, name).iterdir())]


def random_box(height: int, width: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width of torchvision's RandomResizedCrop, in plain Python like the original."""
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1.0)
        aspect = (3 / 4) * (16 / 9) ** random.random()
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def dataloader_epochs(job: Job, decode: Callable[[str, int], Any]) -> Iterator[Iterable[int]]:
    """Yield the epochs of a DataLoader with one persistent worker per core and ``decode(path, resolution)``."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Images(Dataset[tuple[Any, int]]):
        def __init__(self) -> None:
            self.samples = read_folder(job.folder)

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            path, label = self.samples[index]
            return decode(path, job.resolution), label

    def start_worker(_: int) -> None:
        torch.set_num_threads(1)

    loader = DataLoader(
        Images(),
        batch_size=job.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=job.cores,
        persistent_workers=True,
        worker_init_fn=start_worker,
    )
    for _ in range(job.epochs):
        yield (len(images) for images, _ in loader)
