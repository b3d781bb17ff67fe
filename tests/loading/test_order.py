"""Which samples, in which order, on which process."""

import numpy as np
import pytest
from ffcv.loader import OrderOption as TheirOrder
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rebar.errors import RebarError
from rebar.loading.order import OrderOption, epoch_order, order_option, shard_batches, with_copies
from rebar.loading.rng import RngKeys


def order_of(num_samples: int, *, seed: int = 0, epoch: int = 0) -> NDArray[np.int64]:
    keys = RngKeys(seed, epoch, np.arange(num_samples))
    return epoch_order(OrderOption.RANDOM, keys, keys.indices, window_pages=1)


def lists(order: NDArray[np.int64], *, batch: int, world: int, drop_last: bool) -> list[list[list[int]]]:
    """For every rank its batches."""
    return [
        [
            part.tolist()
            for part in shard_batches(order, batch_size=batch, rank=r, world_size=world, drop_last=drop_last)
        ]
        for r in range(world)
    ]


# ------------------------------------------------------------------ the order


@pytest.mark.parametrize("num_samples", [0, 1, 2, 1000])
def test_every_sample_exactly_once(num_samples: int) -> None:
    assert sorted(order_of(num_samples)) == list(range(num_samples))


def test_unshuffled_is_the_files_order() -> None:
    keys = RngKeys(3, 7, np.arange(5))
    assert epoch_order(OrderOption.SEQUENTIAL, keys, keys.indices, window_pages=1).tolist() == [0, 1, 2, 3, 4]


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


# ------------------------------------------------------------------ windows of pages


def quasi_random(pages: NDArray[np.int64], window_pages: int, epoch: int = 0) -> NDArray[np.int64]:
    keys = RngKeys(0, epoch, np.arange(len(pages)))
    return epoch_order(OrderOption.QUASI_RANDOM, keys, pages, window_pages=window_pages)


PAGES = np.arange(10_000) // 100  # 100 pages of 100 samples


def test_windows_hold_every_sample_once() -> None:
    assert sorted(quasi_random(PAGES, 8)) == list(range(10_000))


def test_a_page_is_visited_in_one_window_only() -> None:
    visits = PAGES[quasi_random(PAGES, 8)]
    for window in range(0, 10_000, 800):
        inside = set(visits[window : window + 800])
        assert len(inside) <= 8
        assert not inside & set(visits[window + 800 :])


def test_pages_and_their_samples_are_mixed() -> None:
    first, second = quasi_random(PAGES, 8), quasi_random(PAGES, 8, epoch=1)
    assert not np.array_equal(first, second)
    assert set(PAGES[first[:800]]) != set(PAGES[second[:800]])
    window = PAGES[first[:800]]
    assert (np.diff(window) == 0).mean() < 0.2  # an eighth is expected
    assert abs(np.corrcoef(first, np.arange(10_000))[0, 1]) < 0.3


def test_a_window_as_large_as_the_file_is_random() -> None:
    keys = RngKeys(0, 0, np.arange(10_000))
    random = epoch_order(OrderOption.RANDOM, keys, PAGES, window_pages=1)
    assert np.array_equal(quasi_random(PAGES, 100), random)


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("order", [OrderOption.RANDOM, TheirOrder.RANDOM, "random"])
def test_orders_of_ffcv_are_ours(order: object) -> None:
    assert order_option(order) is OrderOption.RANDOM


def test_every_order_of_ffcv_has_one_of_ours() -> None:
    assert {order.name for order in TheirOrder} == set(OrderOption.__members__)


@pytest.mark.parametrize("order", ["shuffled", None, 2])
def test_an_unknown_order_is_refused(order: object) -> None:
    with pytest.raises(RebarError, match="is none of SEQUENTIAL, RANDOM, QUASI_RANDOM"):
        order_option(order)


# ------------------------------------------------------------------ several crops of an image


def test_copies_share_a_batch_and_lie_apart_in_it() -> None:
    samples, copies = with_copies(np.arange(100, 112), 3, first_sample=0, global_batch=6)
    assert samples.tolist() == [100, 101, 100, 101, 100, 101, 102, 103, 102, 103, 102, 103]
    assert copies.tolist() == [0, 0, 1, 1, 2, 2] * 2


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9))
def test_what_is_left_is_what_was_not_used(length: int, copies: int, before: int, after: int, used: int) -> None:
    """Also where the run goes on with another batch size."""
    order = np.arange(length)
    first = min(used * before, length)
    whole = with_copies(order, copies, first_sample=0, global_batch=before)
    rest = with_copies(order, copies, first_sample=first, global_batch=after)
    seen = [list(zip(*(part.tolist() for part in both), strict=True)) for both in (whole, rest)]
    assert len(set(seen[0])) == length
    assert sorted(seen[0][:first] + seen[1]) == sorted(seen[0])
