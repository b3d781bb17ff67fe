"""Stock FFCV, with the CPU part of ffcv-imagenet's pipeline."""

from collections.abc import Iterable, Iterator

from peers import Job


def epochs(job: Job) -> Iterator[Iterable[int]]:
    """Yield an iterable of batch sizes per epoch, with ffcv-imagenet's order and cache for data that fits in memory."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor

    size = (job.resolution, job.resolution)
    loader = Loader(
        job.beton,
        batch_size=job.batch_size,
        num_workers=job.cores,
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={
            "image": [RandomResizedCropRGBImageDecoder(size), RandomHorizontalFlip(), ToTensor()],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )
    for _ in range(job.epochs):
        yield (len(images) for images, _ in loader)
