"""Stock FFCV, with the pipeline of ffcv-imagenet up to where the GPU takes over."""

from collections.abc import Iterable, Iterator

from peers import Job


def epochs(job: Job) -> Iterator[Iterable[int]]:
    """Batches of bytes, order and cache as ffcv-imagenet has them where the data fit in memory."""
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
