"""NVIDIA DALI's CPU backend: decodes the random crop only, then resizes bilinearly with antialiasing."""

from collections.abc import Iterable, Iterator

from peers import Job


def epochs(job: Job, *, antialias: bool = True) -> Iterator[Iterable[int]]:
    """Yield an iterable of batch sizes per epoch."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=job.batch_size, num_threads=job.cores, device_id=None, prefetch_queue_depth=2)
    def pipeline() -> tuple[object, object]:
        encoded, labels = fn.readers.file(file_root=job.folder, random_shuffle=True, name="reader")
        images = fn.decoders.image_random_crop(encoded, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
        sides = {"resize_x": float(job.resolution), "resize_y": float(job.resolution)}
        images = fn.resize(images, **sides, interp_type=types.INTERP_LINEAR, antialias=antialias)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    running = pipeline()
    running.build()
    batches = running.epoch_size("reader") // job.batch_size
    for _ in range(job.epochs):
        yield (len(running.run()[0]) for _ in range(batches))
