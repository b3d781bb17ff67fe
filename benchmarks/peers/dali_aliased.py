"""As the peer dali, but resized without antialiasing: faster, and other images than everybody else's."""

from collections.abc import Iterable, Iterator

from peers import Job, dali


def epochs(job: Job) -> Iterator[Iterable[int]]:
    """Batches of bytes."""
    return dali.epochs(job, antialias=False)
