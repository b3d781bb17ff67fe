"""Which samples, in which order, on which process."""

import numpy as np
import pytest
from numpy.typing import NDArray

from rebar.loading.order import epoch_order, rank_batches


def order_of(num_samples: int, *, seed: int = 0, epoch: int = 0) -> NDArray[np.int64]:
    return epoch_order(num_samples, seed=seed, epoch=epoch, shuffle=True)


def lists(order: NDArray[np.int64], *, batch: int, world: int, drop_last: bool) -> list[list[list[int]]]:
    """For every rank its batches."""
    return [
        [part.tolist() for part in rank_batches(order, batch_size=batch, rank=r, world_size=world, drop_last=drop_last)]
        for r in range(world)
    ]


# ------------------------------------------------------------------ the order


@pytest.mark.parametrize("num_samples", [0, 1, 2, 1000])
def test_every_sample_exactly_once(num_samples: int) -> None:
    assert sorted(order_of(num_samples)) == list(range(num_samples))


def test_unshuffled_is_the_files_order() -> None:
    assert epoch_order(5, seed=3, epoch=7, shuffle=False).tolist() == [0, 1, 2, 3, 4]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    orders = [order_of(1000, seed=seed, epoch=epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(orders[1], order_of(1000, seed=0, epoch=1))


def test_the_order_is_well_mixed() -> None:
    order = order_of(100_000)
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02
    assert (np.diff(order) == 1).sum() < 10  # one is expected


# ------------------------------------------------------------------ whose

# (samples, batch per rank, ranks, drop_last) -> every rank's batches of samples 0, 1, 2 ... in file order
TABLE = [
    ((4, 2, 1, True), [[[0, 1], [2, 3]]]),
    ((5, 2, 1, True), [[[0, 1], [2, 3]]]),
    ((5, 2, 1, False), [[[0, 1], [2, 3], [4]]]),
    ((8, 2, 2, True), [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]),
    ((11, 2, 2, True), [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]),
    ((11, 2, 2, False), [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [10]]]),
    ((9, 2, 2, False), [[[0, 1], [4, 5], [8]], [[2, 3], [6, 7], []]]),
    ((2, 1, 4, False), [[[0]], [[1]], [[]], [[]]]),
    ((3, 2, 2, True), [[], []]),
    ((0, 2, 2, False), [[], []]),
]


@pytest.mark.parametrize(("case", "expected"), TABLE, ids=[str(case) for case, _ in TABLE])
def test_who_gets_what(case: tuple[int, int, int, bool], expected: list[list[list[int]]]) -> None:
    num_samples, batch, world, drop_last = case
    assert lists(np.arange(num_samples), batch=batch, world=world, drop_last=drop_last) == expected


@pytest.mark.parametrize("num_samples", [1, 7, 8, 9, 15, 16, 61])
@pytest.mark.parametrize("drop_last", [True, False])
def test_global_batches_do_not_depend_on_the_number_of_ranks(num_samples: int, drop_last: bool) -> None:
    order = order_of(num_samples)
    wanted = lists(order, batch=8, world=1, drop_last=drop_last)[0]
    for world in (2, 4, 8):
        ranks = lists(order, batch=8 // world, world=world, drop_last=drop_last)
        assert len({len(batches) for batches in ranks}) == 1  # else some would wait for the others for ever
        assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == wanted  # noqa: RUF017
        assert all(len(part) <= 8 // world for batches in ranks for part in batches)
    dropped = num_samples % 8 if drop_last else 0
    assert sum(wanted, []) == order[: num_samples - dropped].tolist()  # noqa: RUF017
