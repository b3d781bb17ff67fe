"""Which samples, in which order, and whose: global batches first, ranks afterwards.

An epoch's order is one permutation for the whole job. Batch ``b`` is the same set of samples for any
number of processes at one global batch size; a rank takes its slice of it.
"""

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebar.errors import RebarError
from rebar.loading.randomness import SampleKeys, Stream, random_bits

WINDOW_BYTES = 512 << 20
"""How much of the file QUASI_RANDOM mixes at a time: two windows fit into a small machine's memory."""


class OrderOption(Enum):
    """How an epoch goes through the samples."""

    SEQUENTIAL = 1
    RANDOM = 2
    QUASI_RANDOM = 3
    """Window after window of pages drawn at random, and well mixed in each: every page is read once an
    epoch, whatever the memory."""


def order_option(order: Any) -> OrderOption:
    """Ours for ours, FFCV's or the name of one. Raises RebarError for anything else."""
    name = order.name if isinstance(order, Enum) else str(order).upper()
    if name not in OrderOption.__members__:
        raise RebarError(f"order: {order!r} is none of {', '.join(OrderOption.__members__)}")
    return OrderOption[name]


def epoch_order(
    order: OrderOption, keys: SampleKeys, pages: NDArray[np.integer], *, window_pages: int
) -> NDArray[np.int64]:
    """The samples ``keys.indices`` in the order of the epoch ``keys.epoch``, int64, each exactly once.

    ``pages`` says on which page of the file each of them lies; only QUASI_RANDOM looks at it.
    """
    indices = keys.indices
    if order is OrderOption.SEQUENTIAL:
        return indices
    shuffled = random_bits(keys, Stream.ORDER)[:, 0]
    if order is OrderOption.RANDOM:
        return indices[np.argsort(shuffled, kind="stable")]
    windows = _windows(pages, keys.seed, keys.epoch, window_pages)
    return indices[np.lexsort((shuffled, windows))]


def _windows(pages: NDArray[np.integer], seed: int, epoch: int, window_pages: int) -> NDArray[np.int64]:
    """The window of each sample: the pages are shuffled, then taken ``window_pages`` at a time."""
    distinct, page_of_sample = np.unique(pages, return_inverse=True)
    drawn = random_bits(SampleKeys(seed, epoch, distinct.astype(np.int64)), Stream.PAGE)[:, 0]
    place = np.empty(len(distinct), np.int64)
    place[np.argsort(drawn, kind="stable")] = np.arange(len(distinct))
    return (place // window_pages)[page_of_sample]


def with_copies(
    order: NDArray[np.int64], copies: int, *, first_sample: int, global_batch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An epoch as long, but of ``1 / copies`` of its samples, ``copies`` times each; and which copy each is.

    The first ``first_sample`` are left out, and batches counted from there. The copies of a sample share a global
    batch, as far as that is a multiple of them, and lie apart in it, so that they are spread over the ranks.
    Repeated augmentation: Hoffer et al., "Augment your batch", CVPR 2020; Berman et al., "MultiGrain", 2019.
    """
    places = np.arange(first_sample, len(order))
    number = places % copies
    apart = np.lexsort((places, number, (places - first_sample) // global_batch))
    return order[places // copies][apart], number[apart]


def rank_batches(
    order: NDArray[np.int64], *, batch_size: int, rank: int, world_size: int, drop_last: bool
) -> list[NDArray[np.int64]]:
    """Cut an epoch into global batches and take one rank's share of each.

    ``batch_size`` is per rank. With ``drop_last`` an incomplete global batch is left out; without, it is
    dealt out as evenly as possible, nothing twice, so that a rank's last batch may be empty.
    """
    global_batch = batch_size * world_size
    complete = len(order) // global_batch
    batches = [order[b * global_batch :][rank * batch_size : (rank + 1) * batch_size] for b in range(complete)]
    rest = order[complete * global_batch :]
    if len(rest) and not drop_last:
        batches.append(np.array_split(rest, world_size)[rank])
    return batches
