"""SPDL: a pipeline of threads; the decoding functions release the GIL."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

from peers import Job
from peers.full_image import random_resized_crop
from peers.torch_data import read_folder


def epochs(job: Job) -> Iterator[Iterable[int]]:
    """Yield an iterable of batch sizes per epoch."""
    import numpy as np
    from spdl.pipeline import PipelineBuilder

    def decode(path: str) -> Any:
        with open(path, "rb") as file:
            return random_resized_crop(file.read(), job.resolution)

    paths = [path for path, _ in read_folder(job.folder)]
    for _ in range(job.epochs):
        random.shuffle(paths)
        builder = PipelineBuilder().add_source(iter(paths)).pipe(decode, concurrency=job.cores)
        builder = builder.aggregate(job.batch_size, drop_last=True).pipe(np.stack).add_sink(3)
        pipeline = builder.build(num_threads=job.cores)
        with pipeline.auto_stop():
            yield (len(images) for images in pipeline)
