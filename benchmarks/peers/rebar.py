"""Rebar's Loader."""

from collections.abc import Iterable, Iterator

from peers import Job


def epochs(job: Job) -> Iterator[Iterable[int]]:
    """Yield an iterable of batch sizes per epoch, without normalization, which runs on the GPU."""
    from rebar.loading import Loader
    from rebar.loading.crops import RandomResizedCrop
    from rebar.loading.order import OrderOption

    loader = Loader(
        job.beton,
        job.batch_size,
        num_workers=job.cores,
        order=OrderOption.RANDOM,
        cropper=RandomResizedCrop(),
        resolution=job.resolution,
    )
    for _ in range(job.epochs):
        yield (len(batch[0]) for batch in loader)
