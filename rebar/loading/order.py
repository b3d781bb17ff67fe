"""Which samples, in which order, and whose: global batches first, ranks afterwards.

An epoch's order is one permutation for the whole job. Batch ``b`` is the same set of samples for any
number of processes at one global batch size; a rank takes its slice of it.

Which process of how many this is, and how many threads are its share of the machine.

Where in which epoch a loader stands, in samples of the whole job: no number of processes in it.
"""

import os
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebar.errors import RebarError
from rebar.loading.rng import RngKeys, Stream, random_bits

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
    order: OrderOption, keys: RngKeys, pages: NDArray[np.integer], *, window_pages: int
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
    drawn = random_bits(RngKeys(seed, epoch, distinct.astype(np.int64)), Stream.PAGE)[:, 0]
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


def shard_batches(
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


def rank_and_world_size(distributed: bool, rank: int | None, world_size: int | None) -> tuple[int, int]:
    """As given; else with ``distributed`` torch.distributed's or torchrun's; else one process alone.

    Raises RebarError where that does not tell, or where it does not fit together.
    """
    if rank is None and world_size is None:
        rank, world_size = _ask_around() if distributed else (0, 1)
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise RebarError(f"rank {rank} of world_size {world_size}: give both, 0 <= rank < world_size")
    return rank, world_size


def _ask_around() -> tuple[int, int]:
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        raise RebarError(
            "distributed=True, but there is no process group and no RANK and WORLD_SIZE in the environment: "
            "start with torchrun, or give rank= and world_size="
        ) from None


def threads_per_process(requested: int, local_world_size: int | None = None) -> int:
    """As asked; if that is less than one, this machine's usable cores divided by its processes."""
    if requested >= 1:
        return requested
    processes = local_world_size or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // processes)


_VERSION = 1


@dataclass(frozen=True)
class Position:
    """The epoch, and how many samples of its order all processes together have used."""

    epoch: int
    samples: int


@dataclass(frozen=True)
class OrderIdentity:
    """What an epoch's order depends on besides the epoch. A state fits only a loader of the same identity."""

    seed: int
    order: str
    num_samples: int
    copies: int
    window_pages: int
    indices_digest: str


@dataclass
class Progress:
    """One pass through an epoch, as far as it has come on this process."""

    start: Position
    batches: int
    """Those of this pass."""
    global_batch: int
    taken: int = 0
    """Batches that the consumer has got."""

    def position(self, batches_used: int | None) -> Position:
        """After the batches taken so far, or the first ``batches_used`` of this pass."""
        used = self.taken if batches_used is None else batches_used
        if not 0 <= used <= self.taken:
            raise RebarError(f"batches_used is {used}, but this pass has given out {self.taken} batches")
        if used == self.batches:
            return Position(self.start.epoch + 1, 0)
        return Position(self.start.epoch, self.start.samples + used * self.global_batch)


def to_state(position: Position, identity: OrderIdentity) -> dict[str, Any]:
    """As a dictionary of numbers and strings, for a checkpoint."""
    return {"version": _VERSION, **asdict(position), **asdict(identity)}


def from_state(state: dict[str, Any], expected: OrderIdentity) -> Position:
    """The position in a state. Raises RebarError for a state of another order of samples."""
    names = {"version", *(field.name for kind in (Position, OrderIdentity) for field in fields(kind))}
    if not isinstance(state, dict) or set(state) != names or state["version"] != _VERSION:
        raise RebarError("the loader's state is none that this version of Loader.state_dict() gives")
    for name, value in asdict(expected).items():
        if state[name] != value:
            raise RebarError(
                f"the loader's state is of another order of samples: its {name} is {state[name]!r}, this loader's "
                f"{value!r}"
            )
    return Position(int(state["epoch"]), int(state["samples"]))
