"""Distributed training with torchrun: process groups, collectives and the stop vote.

Without torchrun, the world size is 1 and nothing is communicated.
"""

import ctypes
import gc
import os
import signal
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # must be imported before a group exists: see join_world
from torch import nn

from rebar.cli import count, warn
from rebar.errors import RebarError

_TIMEOUT = timedelta(minutes=10)
_LONG_TIMEOUT = timedelta(days=2)
_NOTICE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class World:
    """The ``rank`` of this process among ``size`` ranks, and its ``device``.

    ``long_timeout_groups`` contains a Gloo group for barriers that may take hours, or nothing with a world size of 1.
    It is a list so that :func:`join_world` can drop the last reference to the group.
    """

    rank: int
    size: int
    device: torch.device
    long_timeout_groups: list[dist.ProcessGroup] = field(default_factory=list, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """Whether this is local rank 0, the first rank of its node."""
        return _int_variable("LOCAL_RANK", 0) == 0

    @property
    def local_size(self) -> int:
        """The number of ranks on this node."""
        return _int_variable("LOCAL_WORLD_SIZE", 1)

    @property
    def distributed(self) -> bool:
        return self.size > 1


@contextmanager
def join_world() -> Iterator[World]:
    """Join the process group that torchrun's environment describes: NCCL on GPUs, Gloo on the CPU.

    Warns after ten seconds about ranks that have not joined. Raises RebarError if the environment is incomplete or
    contradictory, if ranks do not join within ten minutes, or if the node has fewer GPUs than ranks.
    """
    rank, size = _read_environment()
    device = _local_device(_int_variable("LOCAL_RANK", 0), _int_variable("LOCAL_WORLD_SIZE", 1))
    world = World(rank=rank, size=size, device=device)
    if not world.distributed:
        yield world
        return
    _terminate_with_launcher()
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=_rendezvous_store(rank, size),
        rank=rank,
        world_size=size,
        timeout=_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    world.long_timeout_groups.append(_new_gloo_group(_LONG_TIMEOUT))
    # torch.distributed.nn keeps a reference to the default group if it exists when the module is first imported. Its
    # threads would then abort the process at exit. torch may import it at any time, so this module does so first.
    yield world
    wait_for_all(world)  # rank 0 may plot and upload for longer than NCCL's timeout
    world.long_timeout_groups.clear()
    gc.collect()  # a DDP model in a reference cycle would keep the group alive, too
    dist.destroy_process_group()  # not after an exception: it would wait for ranks that may have exited


def _read_environment() -> tuple[int, int]:
    """Return the rank and the number of ranks. Raises RebarError if torchrun's variables contradict each other."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    given = {name: os.environ[name] for name in (*names, "MASTER_ADDR") if os.environ.get(name)}
    for name in names:
        if not given.get(name, "0").isdecimal():
            raise _environment_error(f"{name} is '{given[name]}', not a number")
    rank, size = int(given.get("RANK", 0)), int(given.get("WORLD_SIZE", 1))
    if size > 1:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in given]
        if missing:
            raise _environment_error(f"WORLD_SIZE is {size}, but without {', '.join(missing)}")
    if rank >= max(size, 1):
        raise _environment_error(f"RANK is {rank}, but WORLD_SIZE is {given.get('WORLD_SIZE', 'not set')}")
    return rank, size


def _int_variable(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


def _environment_error(problem: str) -> RebarError:
    return RebarError(
        f"environment: {problem}. Start the ranks with torchrun, or unset RANK and WORLD_SIZE to train with one.",
        code="distributed-environment",
    )


def _rendezvous_store(rank: int, size: int) -> dist.Store:
    """Return torchrun's store, or one on rank 0, after all ranks have joined. It has a prefix per attempt on one node.

    When torchrun restarts the workers of a single node, it reuses the store, which has the addresses of the previous
    workers. With several nodes, it creates a new store per attempt, and the nodes' restart counts may differ.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_server = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    notice = threading.Timer(_NOTICE_SECONDS, _print_waiting, [rank, f"{host}:{port}"])
    notice.start()
    try:
        store: dist.Store = dist.TCPStore(
            host, port, size, is_server, timeout=_TIMEOUT, wait_for_workers=False, multi_tenant=True
        )
    except dist.DistError as error:
        raise RebarError(
            f"rank {rank}: no connection to {host}:{port} ({str(error).splitlines()[0]}). Check that rank 0 runs there "
            "and that the port is free and open.",
            code="distributed-not-joined",
        ) from None
    finally:
        notice.cancel()
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    store = dist.PrefixStore("rebar", store)
    _wait_for_ranks(store, rank, size)
    return store


def _print_waiting(rank: int, address: str) -> None:
    print(f"rank {rank}: waiting for rank 0 at {address}", file=sys.stderr, flush=True)


def _wait_for_ranks(store: dist.Store, rank: int, size: int) -> None:
    """Wait until all ranks have joined. Rank 0 warns about those that are missing after ten seconds."""
    keys = [f"joined_{other}" for other in range(size)]
    store.set(keys[rank], "")
    started, warned = time.monotonic(), False
    while not store.check(keys):
        waited = time.monotonic() - started
        if waited > _NOTICE_SECONDS and not warned:
            warn(f"{_missing_ranks(store, keys)}. Waiting for {_TIMEOUT.total_seconds() / 60:g} minutes")
            warned = True
        if waited > _TIMEOUT.total_seconds():
            raise RebarError(
                f"rank {rank}: {_missing_ranks(store, keys)}. Start all of them.", code="distributed-not-joined"
            )
        time.sleep(0.05)


def _missing_ranks(store: dist.Store, keys: Sequence[str]) -> str:
    missing = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
    named = f"rank{'s' if len(missing) > 1 else ''} {textwrap.shorten(', '.join(missing), 60, placeholder=' ...')}"
    return f"{named} of {len(keys)} did not join"


def _terminate_with_launcher() -> None:
    """Make Linux send SIGTERM to this process when torchrun dies; otherwise it would continue to train."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _local_device(local_rank: int, local_size: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_size > torch.cuda.device_count():
        raise RebarError(
            f"torchrun: {local_size} ranks, but {count(torch.cuda.device_count(), 'GPU')} on this node. "
            f"Start it with --nproc_per_node={torch.cuda.device_count()}.",
            code="distributed-too-few-gpus",
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def wrap_distributed(model: nn.Module, world: World) -> nn.Module:
    """Wrap the model in DistributedDataParallel; with a world size of 1, return it unchanged.

    Weights and buffers must be identical on all ranks. BatchNorm statistics are not synchronized in training: call
    :func:`broadcast_buffers` before they are used.
    """
    if not world.distributed:
        return model
    device_ids = [world.device] if world.device.type == "cuda" else None
    with warnings.catch_warnings():  # PyTorch 2.13 renamed the argument
        warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)
        return nn.parallel.DistributedDataParallel(
            model, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )


def broadcast_buffers(model: nn.Module, world: World) -> None:
    """Broadcast rank 0's buffers (BatchNorm statistics), so that all ranks evaluate the model that is saved."""
    if world.distributed:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def _new_gloo_group(timeout: timedelta) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)  # every rank is in it
    return group


def sum_over_world(values: torch.Tensor, world: World) -> torch.Tensor:
    """All-reduce ``values`` to their sum over all ranks, in place, and return them."""
    if world.distributed:
        dist.all_reduce(values)
    return values


def gather_from_all(value: Any, world: World) -> list[Any]:
    """Gather a value from every rank. Returns the list, ordered by rank, on every rank."""
    if not world.distributed:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


class StopVote:
    """A vote of all ranks after each step; the maximum wins.

    The votes are all-reduced on the CPU while the next step runs, so voting does not delay training. All ranks receive
    the result at the same step, one step late. The all-reduce fails immediately if a rank dies.
    """

    def __init__(self, world: World) -> None:
        self._group = _new_gloo_group(_TIMEOUT) if world.distributed else None
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def cast(self, vote: int) -> int:
        """Cast the vote of this step. Return the result of the previous step, or of this step if there is one rank."""
        if self._group is None:
            return vote
        result = self.finish()
        votes = torch.tensor([vote])
        work = dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None  # this rank is in the group
        self._pending = (votes, work)
        return result

    def finish(self) -> int:
        """Wait for the pending vote and return its result; 0 if there is none."""
        if self._pending is None:
            return 0
        votes, work = self._pending
        self._pending = None
        work.wait()
        return int(votes.item())


def wait_for_all(world: World) -> None:
    """Wait until all ranks have called this, for up to two days. Raises RuntimeError if a rank dies."""
    if world.distributed:
        dist.barrier(group=world.long_timeout_groups[0])
