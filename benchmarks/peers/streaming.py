"""MosaicML Streaming: MDS shards, written once next to the folder, read by torch's DataLoader."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from peers import Job
from peers.full_image import random_resized_crop
from peers.torch_data import read_folder


def epochs(job: Job) -> Iterator[Iterable[int]]:
    """Yield an iterable of batch sizes per epoch."""
    import torch

    # Streaming imports torchvision. These declarations let it import a torchvision built for another torch.
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import streaming
    from torch.utils.data import DataLoader

    shards = f"{job.folder}_mds"
    if not Path(shards, "index.json").exists():
        with streaming.MDSWriter(out=shards, columns={"jpeg": "bytes", "label": "int"}) as writer:
            for path, label in read_folder(job.folder):
                writer.write({"jpeg": Path(path).read_bytes(), "label": label})

    class Images(streaming.StreamingDataset):
        def __getitem__(self, index: Any) -> tuple[Any, int]:
            sample = super().__getitem__(index)
            return torch.from_numpy(random_resized_crop(sample["jpeg"], job.resolution)), sample["label"]

    dataset = Images(local=shards, shuffle=True, batch_size=job.batch_size)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=job.batch_size, num_workers=job.cores, drop_last=True, persistent_workers=True
    )
    for _ in range(job.epochs):
        yield (len(images) for images, _ in loader)
