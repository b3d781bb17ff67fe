"""Memory comes back when nobody looks at it, and not before."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rebar.loading.prefetch import BufferPool


def address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def test_what_was_let_go_is_lent_again() -> None:
    pool = BufferPool(keep=2)
    first = pool.take(1000)
    place = address(first)
    assert address(second := pool.take(1000)) != place
    del first
    assert address(third := pool.take(1000)) == place
    assert address(second) != address(third)


HOLDERS: dict[str, Callable[[NDArray[np.uint8]], Any]] = {
    "reshaped": lambda array: array.reshape(10, 100),
    "part": lambda array: array[3:7].view(np.uint16),
    "tensor": torch.from_numpy,
    "part of a tensor": lambda array: torch.from_numpy(array.reshape(10, 100))[2:4, 5],
    "detached tensor": lambda array: torch.from_numpy(array).view(torch.int16).detach(),
    "storage": lambda array: torch.from_numpy(array).untyped_storage(),
    "array of a tensor": lambda array: torch.from_numpy(array)[5:].numpy(),
    "dlpack": lambda array: torch.utils.dlpack.to_dlpack(torch.from_numpy(array)),
    "buffer": memoryview,
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=list(HOLDERS))
def test_what_anybody_holds_is_not_lent(hold: Callable[[NDArray[np.uint8]], Any]) -> None:
    pool = BufferPool(keep=2)
    lent = pool.take(1000)
    place = address(lent)
    held = hold(lent)
    del lent
    gc.collect()
    assert address(pool.take(1000)) != place
    del held
    gc.collect()
    assert place in {address(pool.take(1000)), address(pool.take(1000))}


def test_a_larger_slot_serves_and_a_smaller_one_is_let_go() -> None:
    pool = BufferPool(keep=2)
    place = address(pool.take(100_000))
    assert address(pool.take(10)) == place
    assert pool.take(200_000).nbytes == 200_000
    assert pool.take(0).nbytes == 0


def test_no_more_than_asked_for_is_kept() -> None:
    pool = BufferPool(keep=2)
    lent = [pool.take(1000) for _ in range(10)]
    lent.clear()
    assert len(pool._idle) == 2
