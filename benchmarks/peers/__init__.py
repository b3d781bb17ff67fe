"""The loaders that are compared, one file each.

A peer is a function ``epochs(job)`` that gives, for each epoch, an iterable of batch sizes: asking for the
next one waits until that batch of images, decoded, randomly cropped, resized and mirrored, lies in memory
as uint8. Only its own file imports it, so that a peer that is not installed is left out alone.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

NAMES = (
    "rebar",
    "region_decode",
    "ffcv",
    "torchvision_pil",
    "torchvision_simplejpeg",
    "torchvision_cv2",
    "dali",
    "dali_aliased",
    "spdl",
    "webdataset",
    "litdata",
    "streaming",
)


@dataclass(frozen=True)
class Job:
    """What a peer is to do. ``beton`` and ``folder`` (class folders of files) hold the same JPEGs."""

    beton: str
    folder: str
    resolution: int
    """Pixels."""
    cores: int
    batch_size: int
    epochs: int


Peer = Callable[[Job], Iterator[Iterable[int]]]
