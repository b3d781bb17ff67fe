"""The loaders that benchmarks/loader.py compares, one module each.

A peer is a function ``epochs(job)`` that yields an iterable of batch sizes per epoch. Each size is yielded once that
batch is in memory: uint8 images, decoded, randomly cropped, resized and flipped. Only the peer's own module imports its
package, so a missing package excludes that peer only. To add a peer, add a module here and its name to NAMES.
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
    """The settings of one run. ``beton`` and ``folder`` (one folder per class) contain the same JPEGs."""

    beton: str
    folder: str
    resolution: int
    """Pixels."""
    cores: int
    batch_size: int
    epochs: int


Peer = Callable[[Job], Iterator[Iterable[int]]]
