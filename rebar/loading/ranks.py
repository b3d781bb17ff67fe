"""Which process of how many this is, and how many threads are its share of the machine."""

import os

from rebar.errors import RebarError


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
