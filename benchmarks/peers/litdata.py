"""litdata: its own chunks, written once next to the folder, read by its StreamingDataLoader."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import litdata
import torch

from peers import Job
from peers.full_image import random_resized_crop
from peers.torch_data import read_folder

# Both are pickled for worker processes, so they are defined at module level.


class Images(litdata.StreamingDataset):
    """The stored JPEGs, decoded."""

    resolution: int

    def __getitem__(self, index: Any) -> tuple[Any, int]:
        sample = super().__getitem__(index)
        return torch.from_numpy(random_resized_crop(sample["jpeg"], self.resolution)), sample["label"]


def read_sample(sample: tuple[str, int]) -> dict[str, Any]:
    """Return the record of a file."""
    path, label = sample
    return {"jpeg": Path(path).read_bytes(), "label": label}


def epochs(job: Job) -> Iterator[Iterable[int]]:
    """Yield an iterable of batch sizes per epoch."""
    chunks = f"{job.folder}_litdata"
    if not Path(chunks, "index.json").exists():
        litdata.optimize(fn=read_sample, inputs=read_folder(job.folder), output_dir=chunks, chunk_bytes="64MB")

    dataset = Images(chunks, shuffle=True, drop_last=True)
    dataset.resolution = job.resolution
    loader = litdata.StreamingDataLoader(dataset, batch_size=job.batch_size, num_workers=job.cores, drop_last=True)
    for _ in range(job.epochs):
        yield (len(images) for images, _ in loader)
