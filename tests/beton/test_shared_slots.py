"""Results in shared memory: as they were, also those that do not fit."""

import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rebar.beton.worker_pool import SLOT_BYTES, SharedSlots, new_slots


def result(size: int) -> list[Any]:
    return [np.arange(size, dtype=np.uint8), "text", np.ones((3, 4))[:, ::2], np.zeros(0), np.arange(5)]


def check(found: list[Any], size: int) -> None:
    for one, other in zip(found, result(size), strict=True):
        np.testing.assert_array_equal(one, other)


def pack(slots: SharedSlots, connection: Any) -> None:
    connection.send(slots.pack(result(1_000_000), 2))
    connection.recv()


def test_arrays_lie_in_the_slot() -> None:
    with new_slots(3) as slots:
        packed = [slots.pack(result(size), slot) for slot, size in enumerate((300_000, SLOT_BYTES // 2, 7))]
        assert all(len(pickle.dumps(one)) < 1000 for one in packed)
        for slot, size in enumerate((300_000, SLOT_BYTES // 2, 7)):
            check(slots.unpack(packed[slot], slot), size)


@pytest.mark.parametrize("size", [SLOT_BYTES - 40, SLOT_BYTES - 39, 3 * SLOT_BYTES])
def test_what_does_not_fit_harms_no_other_slot(size: int) -> None:
    """A result has 40 bytes besides."""
    with new_slots(2) as slots:
        behind = slots.pack(result(1000), 1)
        packed = slots.pack(result(size), 0)
        assert (packed.sizes == ()) == (size > SLOT_BYTES - 40)
        check(slots.unpack(packed, 0), size)
        check(slots.unpack(behind, 1), 1000)


def test_another_process_has_the_same_memory_and_nothing_of_it_has_a_name() -> None:
    ours, theirs = multiprocessing.Pipe()
    before = set(Path("/dev/shm").iterdir()) if os.path.isdir("/dev/shm") else set()
    with new_slots(3) as slots:
        process = multiprocessing.get_context("forkserver").Process(target=pack, args=(slots, theirs), daemon=True)
        process.start()
    packed = ours.recv()
    process.kill()
    process.join()
    assert len(packed.content) < 1000
    check(slots.unpack(packed, 2), 1_000_000)
    if before:
        assert not [path for path in set(Path("/dev/shm").iterdir()) - before if "slots" in path.name]
