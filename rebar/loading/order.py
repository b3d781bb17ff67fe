"""Which samples, in which order, and whose: global batches first, ranks afterwards.

An epoch's order is one permutation for the whole job. Batch ``b`` is the same set of samples for any
number of processes at one global batch size; a rank takes its slice of it.
"""

import numpy as np
from numpy.typing import NDArray

from rebar.loading.randomness import Stream, random_bits


def epoch_order(num_samples: int, *, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
    """The sample indices of an epoch, int64 ``[num_samples]``, each exactly once."""
    indices = np.arange(num_samples, dtype=np.int64)
    if not shuffle:
        return indices
    keys = random_bits(seed, epoch, indices, stream=Stream.ORDER)[:, 0]
    return np.argsort(keys, kind="stable")


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
