"""WebDataset: tar shards, written once next to the folder, decoded with OpenCV in DataLoader workers."""

import random
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from peers import Job
from peers.torch_data import random_box, read_folder

IMAGES_PER_SHARD = 200


def write_shards(folder: str) -> list[str]:
    """Write the folder's images as tar shards, once, and return their paths."""
    samples, shards = read_folder(folder), []
    for start in range(0, len(samples), IMAGES_PER_SHARD):
        shard = Path(f"{folder}_shard_{start:06d}.tar")
        shards.append(str(shard))
        if shard.exists():
            continue
        with tarfile.open(shard, "w") as tar:
            for number, (path, label) in enumerate(samples[start : start + IMAGES_PER_SHARD], start):
                tar.add(path, arcname=f"{number:08d}_{label}.jpg")
    return shards


def epochs(job: Job) -> Iterator[Iterable[int]]:
    """Yield an iterable of batch sizes per epoch."""
    import cv2
    import numpy as np
    import torch
    import webdataset

    def decode(sample: dict[str, Any]) -> Any:
        cv2.setNumThreads(1)
        encoded = np.frombuffer(sample["jpg"], np.uint8)
        decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        assert decoded is not None
        image = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
        top, left, height, width = random_box(*image.shape[:2])
        cropped = image[top : top + height, left : left + width]
        resized = cv2.resize(cropped, (job.resolution, job.resolution), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(cv2.flip(resized, 1) if random.random() < 0.5 else resized)

    shards = write_shards(job.folder)
    images = webdataset.WebDataset(shards, shardshuffle=len(shards), nodesplitter=webdataset.split_by_node)
    dataset = images.shuffle(1000).map(decode).batched(job.batch_size, partial=False)
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=job.cores, persistent_workers=True)
    for _ in range(job.epochs):
        yield (len(images) for images in loader)
