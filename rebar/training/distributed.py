"""The processes of a run, as torchrun's environment describes them.

Started by plain ``python`` a run is a world of one, and nothing here communicates.
"""

import ctypes
import gc
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before a group exists: see join_world
from torch import nn

from rebar.errors import RebarError

_TIMEOUT = timedelta(minutes=10)
_PATIENCE = timedelta(days=2)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class World:
    """Who we are: ``rank`` of ``size`` processes, working on ``device``."""

    rank: int
    size: int
    device: torch.device
    patient_groups: list[dist.ProcessGroup] = field(default_factory=list, repr=False, compare=False)
    """One, to wait on the CPU for as long as the others live, whose end it notices; none in a world of one.

    A group that is still referred to lives on when the world ends, so it lies where it can be taken away."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether this is its machine's first process."""
        return int(os.environ.get("LOCAL_RANK", 0)) == 0

    @property
    def size_here(self) -> int:
        """Processes on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", 1))

    @property
    def distributed(self) -> bool:
        return self.size > 1


@contextmanager
def join_world() -> Iterator[World]:
    """Take our place among the processes torchrun started: NCCL on GPUs, Gloo on CPUs.

    Raises RebarError where this machine has fewer GPUs than processes.
    """
    device = _device_of(int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    world = World(rank=rank, size=size, device=device)
    if not world.distributed:
        yield world
        return
    _end_with_launcher()
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=_meeting_place(),
        rank=rank,
        world_size=size,
        timeout=_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    world.patient_groups.append(dist.new_group(backend="gloo", timeout=_PATIENCE))
    # torch.distributed.nn keeps the group that exists when it is first imported, which torch does by itself
    # at some later moment: that group's threads would never end, and abort the process at its exit.
    yield world
    wait_for_all(world)  # the first process may have to draw and upload; who waits for it in NCCL waits minutes only
    world.patient_groups.clear()
    gc.collect()  # a wrapped model in a cycle would keep the group, too
    dist.destroy_process_group()  # not after an error: it would wait for processes that may be gone


def _meeting_place() -> dist.Store:
    """torchrun's store of the processes' addresses.

    When torchrun restarts the workers of a single machine it keeps the store, and with it the addresses of
    those that died, which the new ones may meet first. So every attempt has a corner of its own. With
    several machines torchrun makes a new store each time, and their counts of restarts need not agree.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=_TIMEOUT))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    return dist.PrefixStore("rebar", store)


def _end_with_launcher() -> None:
    """Ask Linux to end this process when torchrun dies, which otherwise leaves its workers training on."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _device_of(local_rank: int, local_size: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_size > torch.cuda.device_count():
        raise RebarError(
            f"{local_size} processes but {torch.cuda.device_count()} GPUs on this machine: "
            f"start torchrun with --nproc_per_node={torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def wrap_distributed(model: nn.Module, world: World) -> nn.Module:
    """The model as DistributedDataParallel, or as it is in a world of one.

    Its weights and buffers must be the same in all processes. The statistics of BatchNorm then grow apart, each
    process's from its own images: :func:`share_buffers` makes them one where they are used.
    """
    if not world.distributed:
        return model
    device_ids = [world.device] if world.device.type == "cuda" else None
    with warnings.catch_warnings():  # its other name came with PyTorch 2.13
        warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)
        return nn.parallel.DistributedDataParallel(
            model, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )


def share_buffers(model: nn.Module, world: World) -> None:
    """Give every process the first one's BatchNorm statistics, so that all evaluate the model that is saved."""
    if world.distributed:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def sum_over_world(values: torch.Tensor, world: World) -> torch.Tensor:
    """``values`` added up over all processes, on all of them (in place)."""
    if world.distributed:
        dist.all_reduce(values)
    return values


def gather_from_all(value: Any, world: World) -> list[Any]:
    """Every process's value, in the order of their ranks, on all of them."""
    if not world.distributed:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


class Agreement:
    """What the processes want at each step, brought to one decision without waiting for it.

    The wishes travel on the CPU while the next step is computed, so every process reads them one step
    late, and all of them at the same step. The connection also ends at once when a process dies.
    """

    def __init__(self, world: World) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT) if world.distributed else None
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def decide(self, wish: int) -> int:
        """Send this step's wish; the largest wish of all processes at the step before (alone: of this one)."""
        if self._group is None:
            return wish
        decision = self.settle()
        wishes = torch.tensor([wish])
        work = dist.all_reduce(wishes, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (wishes, work)
        return decision

    def settle(self) -> int:
        """The largest of the wishes that were sent last and not read yet; 0 if there are none."""
        if self._pending is None:
            return 0
        wishes, work = self._pending
        self._pending = None
        work.wait()
        return int(wishes.item())


def wait_for_all(world: World) -> None:
    """Return when every process has come here, however long that takes. Raises RuntimeError where one has died."""
    if world.distributed:
        dist.barrier(group=world.patient_groups[0])
