"""The order of samples in an epoch, its sharding over ranks, the loader's settings, and its position in an epoch.

All ranks share one permutation per epoch. It is cut into global batches, which are split over the ranks, so a global
batch depends neither on the number of ranks nor on the batch size per rank.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebar.errors import RebarError
from rebar.loading.rng import RngKeys, Stream, random_bits

WINDOW_BYTES = 512 << 20
"""The size of a QUASI_RANDOM window. Two windows must fit into the page cache."""


class OrderOption(Enum):
    """The order of the samples in an epoch."""

    SEQUENTIAL = 1
    RANDOM = 2
    QUASI_RANDOM = 3
    """Shuffle the file's pages, group them into windows, and shuffle the samples within each window. Each page is read
    in one window only, so the file does not need to fit in memory."""


def order_option(order: Any) -> OrderOption:
    """Convert an OrderOption of Rebar or FFCV, or its name, to an OrderOption. Raises RebarError for other values."""
    name = order.name if isinstance(order, Enum) else str(order).upper()
    if name not in OrderOption.__members__:
        raise RebarError(
            f"order: {order!r} is unknown. Use one of {', '.join(OrderOption.__members__)}.",
            code="loader-invalid-argument",
        )
    return OrderOption[name]


def epoch_order(
    order: OrderOption, keys: RngKeys, pages: NDArray[np.integer], *, window_pages: int
) -> NDArray[np.int64]:
    """Return the samples ``keys.indices`` in the order of epoch ``keys.epoch``, int64 ``[n]``, each exactly once.

    ``pages`` is the page of the file that each sample is on; only QUASI_RANDOM uses it.
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
    """Return the window of each sample: the pages are shuffled and grouped into windows of ``window_pages``."""
    distinct, page_of_sample = np.unique(pages, return_inverse=True)
    shuffled = random_bits(RngKeys(seed, epoch, distinct.astype(np.int64)), Stream.PAGE)[:, 0]
    rank_of_page = np.empty(len(distinct), np.int64)
    rank_of_page[np.argsort(shuffled, kind="stable")] = np.arange(len(distinct))
    return (rank_of_page // window_pages)[page_of_sample]


def with_copies(
    order: NDArray[np.int64], copies: int, *, first_sample: int, global_batch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Repeat the first ``1 / copies`` of an epoch's samples ``copies`` times; return samples and copy numbers.

    The epoch keeps its length. Its first ``first_sample`` entries are skipped; batches are counted from there. If
    ``copies`` divides the global batch, all copies of a sample are in one global batch, spaced apart so that they are
    spread over the ranks. Repeated augmentation: Hoffer et al., "Augment your batch", CVPR 2020; Berman et al.,
    "MultiGrain", 2019.
    """
    positions = np.arange(first_sample, len(order))
    number = positions % copies
    spread = np.lexsort((positions, number, (positions - first_sample) // global_batch))
    return order[positions // copies][spread], number[spread]


def shard_batches(
    order: NDArray[np.int64], *, batch_size: int, rank: int, world_size: int, drop_last: bool
) -> list[NDArray[np.int64]]:
    """Cut an epoch into global batches and return one rank's shard of each.

    ``batch_size`` is per rank. ``drop_last`` drops an incomplete global batch; otherwise its samples are split evenly
    without repetition, so a rank's last batch may be smaller, or empty.
    """
    global_batch = batch_size * world_size
    complete = len(order) // global_batch
    batches = [order[b * global_batch :][rank * batch_size : (rank + 1) * batch_size] for b in range(complete)]
    rest = order[complete * global_batch :]
    if len(rest) and not drop_last:
        batches.append(np.array_split(rest, world_size)[rank])
    return batches


def rank_and_world_size(distributed: bool, rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return the given rank and world size, or torch.distributed's or torchrun's with ``distributed``, else (0, 1).

    Raises RebarError if the values are inconsistent, or if ``distributed`` is set and there is no process group.
    """
    if rank is None and world_size is None:
        rank, world_size = _distributed_rank_and_world_size() if distributed else (0, 1)
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise RebarError(
            f"rank {rank}, world_size {world_size}: not a valid rank and world size. Pass 0 <= rank < world_size.",
            code="loader-invalid-argument",
        )
    return rank, world_size


def _distributed_rank_and_world_size() -> tuple[int, int]:
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        raise RebarError(
            "distributed=True: there is no process group, and RANK and WORLD_SIZE are not set. Start with torchrun, or "
            "pass rank= and world_size=.",
            code="loader-no-process-group",
        ) from None


def threads_per_process(requested: int, local_world_size: int | None = None) -> int:
    """Return ``requested``, or the usable cores divided by the ranks on this node if it is below 1."""
    if requested >= 1:
        return requested
    processes = local_world_size or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // processes)


def _integer(minimum: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
            raise RebarError(
                f"{name}: {value!r} is not an integer of at least {minimum}.", code="loader-invalid-argument"
            )
        return int(value)

    return check


def check_flag(name: str, value: Any) -> bool:
    """Return a bool. Raises RebarError for values that are neither a bool nor 0 or 1."""
    if not isinstance(value, (bool, int, np.bool_)) or value not in (0, 1):
        raise RebarError(f"{name}: {value!r} is not a bool. Pass True or False.", code="loader-invalid-argument")
    return bool(value)


_ANY_INTEGER = -(2**63)
SETTINGS: dict[str, Callable[[str, Any], Any]] = {
    "batch_size": _integer(1),
    "num_workers": lambda name, value: threads_per_process(_integer(_ANY_INTEGER)(name, value)),
    "order": lambda name, value: order_option(value),
    "seed": lambda name, value: 0 if value is None else _integer(_ANY_INTEGER)(name, value),
    "drop_last": check_flag,
    "batches_ahead": _integer(0),
    "recompile": check_flag,
    "copies": _integer(1),
    "window_pages": _integer(1),
    "resolution": lambda name, value: None if value is None else _integer(1)(name, value),
    "next_epoch": _integer(0),
}
"""The attributes of Loader that may be set, and the functions that check and convert their values."""

ALTERNATIVES = {
    "filter": "Set indices to the samples to use; beton.labels has all labels.",
    "reader": "beton has the file's tables.",
    "pipelines": "Create another Loader to use other pipelines.",
    **dict.fromkeys(
        ("traversal_order", "next_traversal_order", "first_traversal_order"),
        "Set order; batch_indices(epoch) returns the samples of each batch.",
    ),
}
"""For attributes of FFCV's Loader that are not supported: what to use instead."""


class LoaderAttributeError(RebarError, AttributeError):
    """An attribute of ``ffcv.loader.Loader`` that is not supported, or any other name that Loader does not have."""


_STATE_VERSION = 1


@dataclass(frozen=True)
class Position:
    """The epoch, and the number of its samples that all ranks together have used."""

    epoch: int
    samples: int


@dataclass(frozen=True)
class OrderIdentity:
    """Everything that determines an epoch's order, except the epoch. A state loads only into a matching loader."""

    seed: int
    order: str
    num_samples: int
    copies: int
    window_pages: int
    indices_digest: str


@dataclass
class Progress:
    """The progress of this rank in one iteration over an epoch."""

    start: Position
    identity: OrderIdentity
    batches: int
    """The number of batches of this iteration."""
    global_batch: int
    yielded: int = 0
    """The number of batches yielded so far."""

    def position(self, batches_used: int | None) -> Position:
        """Return the position after the first ``batches_used`` batches of this iteration; None: after those yielded."""
        used = self.yielded if batches_used is None else batches_used
        if not 0 <= used <= self.yielded:
            raise RebarError(
                f"batches_used: {used}, but this iteration has yielded {self.yielded} batches. Pass the number of "
                "batches of this iteration that were trained on.",
                code="loader-invalid-argument",
            )
        if used == self.batches:
            return Position(self.start.epoch + 1, 0)
        return Position(self.start.epoch, self.start.samples + used * self.global_batch)


def to_state(position: Position, identity: OrderIdentity) -> dict[str, Any]:
    """Return a dictionary of numbers and strings for a checkpoint."""
    return {"version": _STATE_VERSION, **asdict(position), **asdict(identity)}


def from_state(state: dict[str, Any], expected: OrderIdentity) -> Position:
    """Return the position in a state. Raises RebarError if the state belongs to a different order of samples."""
    names = {"version", *(field.name for kind in (Position, OrderIdentity) for field in fields(kind))}
    if not isinstance(state, dict) or set(state) != names or state["version"] != _STATE_VERSION:
        raise RebarError(
            "loader state: not saved by this version of Loader. Start from the beginning of an epoch.",
            code="loader-state-invalid",
        )
    for name, value in asdict(expected).items():
        if state[name] != value:
            raise RebarError(
                f"loader state: its {name} is {state[name]!r}, this loader's is {value!r}. Create the loader with the "
                "arguments of the run that saved the state.",
                code="loader-state-mismatch",
            )
    return Position(int(state["epoch"]), int(state["samples"]))
