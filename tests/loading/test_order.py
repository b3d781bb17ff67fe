"""The order of an epoch, its windows and copies, and its sharding over ranks."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rebar.errors import RebarError
from rebar.loading.order import (
    OrderOption,
    epoch_order,
    order_option,
    rank_and_world_size,
    shard_batches,
    threads_per_process,
    with_copies,
)
from rebar.loading.rng import RngKeys


def order_of(num_samples: int, *, seed: int = 0, epoch: int = 0) -> NDArray[np.int64]:
    keys = RngKeys(seed, epoch, np.arange(num_samples))
    return epoch_order(OrderOption.RANDOM, keys, keys.indices, window_pages=1)


def batches_per_rank(order: NDArray[np.int64], *, batch: int, world: int, drop_last: bool) -> list[list[list[int]]]:
    """Return the batches of every rank."""
    return [
        [
            part.tolist()
            for part in shard_batches(order, batch_size=batch, rank=r, world_size=world, drop_last=drop_last)
        ]
        for r in range(world)
    ]


# ------------------------------------------------------------------ epoch_order


@pytest.mark.parametrize("num_samples", [0, 1, 2, 1000])
def test_random_order_has_every_sample_exactly_once(num_samples: int) -> None:
    assert sorted(order_of(num_samples)) == list(range(num_samples))


def test_sequential_order_is_the_files_order() -> None:
    keys = RngKeys(3, 7, np.arange(5))
    assert epoch_order(OrderOption.SEQUENTIAL, keys, keys.indices, window_pages=1).tolist() == [0, 1, 2, 3, 4]


def test_random_order_is_a_function_of_seed_and_epoch() -> None:
    orders = [order_of(1000, seed=seed, epoch=epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(orders[1], order_of(1000, seed=0, epoch=1))


def test_random_order_is_well_mixed() -> None:
    order = order_of(100_000)
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02
    assert (np.diff(order) == 1).sum() < 10  # one is expected


# ------------------------------------------------------------------ shard_batches

# (samples, batch size per rank, ranks, drop_last) -> the batches of every rank for samples 0, 1, 2 ... in file order
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
def test_shard_batches_matches_hand_computed_batches(
    case: tuple[int, int, int, bool], expected: list[list[list[int]]]
) -> None:
    num_samples, batch, world, drop_last = case
    assert batches_per_rank(np.arange(num_samples), batch=batch, world=world, drop_last=drop_last) == expected


@pytest.mark.parametrize("num_samples", [1, 7, 8, 9, 15, 16, 61])
@pytest.mark.parametrize("drop_last", [True, False])
def test_shard_batches_keeps_global_batches_for_any_number_of_ranks(num_samples: int, drop_last: bool) -> None:
    order = order_of(num_samples)
    expected = batches_per_rank(order, batch=8, world=1, drop_last=drop_last)[0]
    for world in (2, 4, 8):
        ranks = batches_per_rank(order, batch=8 // world, world=world, drop_last=drop_last)
        assert len({len(batches) for batches in ranks}) == 1  # otherwise the ranks would deadlock
        assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == expected  # noqa: RUF017
        assert all(len(part) <= 8 // world for batches in ranks for part in batches)
    dropped = num_samples % 8 if drop_last else 0
    assert sum(expected, []) == order[: num_samples - dropped].tolist()  # noqa: RUF017


# ------------------------------------------------------------------ QUASI_RANDOM


def quasi_random(pages: NDArray[np.int64], window_pages: int, epoch: int = 0) -> NDArray[np.int64]:
    keys = RngKeys(0, epoch, np.arange(len(pages)))
    return epoch_order(OrderOption.QUASI_RANDOM, keys, pages, window_pages=window_pages)


PAGES = np.arange(10_000) // 100  # 100 pages of 100 samples


def test_quasi_random_order_has_every_sample_exactly_once() -> None:
    assert sorted(quasi_random(PAGES, 8)) == list(range(10_000))


def test_quasi_random_order_reads_each_page_in_one_window() -> None:
    pages = PAGES[quasi_random(PAGES, 8)]
    for window in range(0, 10_000, 800):
        in_window = set(pages[window : window + 800])
        assert len(in_window) <= 8
        assert not in_window & set(pages[window + 800 :])


def test_quasi_random_order_shuffles_pages_and_samples() -> None:
    first, second = quasi_random(PAGES, 8), quasi_random(PAGES, 8, epoch=1)
    assert not np.array_equal(first, second)
    assert set(PAGES[first[:800]]) != set(PAGES[second[:800]])
    window = PAGES[first[:800]]
    assert (np.diff(window) == 0).mean() < 0.2  # an eighth is expected
    assert abs(np.corrcoef(first, np.arange(10_000))[0, 1]) < 0.3


def test_quasi_random_order_with_one_window_equals_random_order() -> None:
    keys = RngKeys(0, 0, np.arange(10_000))
    random = epoch_order(OrderOption.RANDOM, keys, PAGES, window_pages=1)
    assert np.array_equal(quasi_random(PAGES, 100), random)


# ------------------------------------------------------------------ order_option


@pytest.mark.parametrize("order", [OrderOption.RANDOM, "RANDOM", "random"])
def test_order_option_accepts_names(order: object) -> None:
    assert order_option(order) is OrderOption.RANDOM


@pytest.mark.parametrize("order", ["shuffled", None, 2])
def test_order_option_rejects_unknown_orders(order: object) -> None:
    with pytest.raises(RebarError, match="SEQUENTIAL, RANDOM, QUASI_RANDOM") as error:
        order_option(order)
    assert error.value.code == "loader-invalid-argument"


# ------------------------------------------------------------------ with_copies


def test_with_copies_puts_copies_into_one_batch_spaced_apart() -> None:
    samples, copies = with_copies(np.arange(100, 112), 3, first_sample=0, global_batch=6)
    assert samples.tolist() == [100, 101, 100, 101, 100, 101, 102, 103, 102, 103, 102, 103]
    assert copies.tolist() == [0, 0, 1, 1, 2, 2] * 2


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9))
def test_with_copies_resumes_with_the_unused_samples_for_any_batch_size(
    length: int, copies: int, before: int, after: int, used: int
) -> None:
    order = np.arange(length)
    first = min(used * before, length)
    complete = with_copies(order, copies, first_sample=0, global_batch=before)
    rest = with_copies(order, copies, first_sample=first, global_batch=after)
    pairs = [list(zip(*(part.tolist() for part in both), strict=True)) for both in (complete, rest)]
    assert len(set(pairs[0])) == length
    assert sorted(pairs[0][:first] + pairs[1]) == sorted(pairs[0])


# ------------------------------------------------------------------ rank and threads


@pytest.fixture
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_torchrun")
def test_rank_and_world_size_default_to_a_single_process() -> None:
    assert rank_and_world_size(False, None, None) == (0, 1)
    assert rank_and_world_size(False, 1, 2) == (1, 2)
    assert rank_and_world_size(True, 1, 2) == (1, 2)


@pytest.mark.usefixtures("no_torchrun")
def test_rank_and_world_size_come_from_torchrun_if_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert rank_and_world_size(True, None, None) == (3, 4)
    assert rank_and_world_size(False, None, None) == (0, 1)


@pytest.mark.usefixtures("no_torchrun")
def test_distributed_without_a_process_group_is_rejected() -> None:
    with pytest.raises(RebarError, match="torchrun") as error:
        rank_and_world_size(True, None, None)
    assert error.value.code == "loader-no-process-group"


@pytest.mark.parametrize(("rank", "world_size"), [(0, None), (None, 2), (2, 2), (-1, 2), (0, 0)])
def test_inconsistent_rank_and_world_size_are_rejected(rank: int | None, world_size: int | None) -> None:
    with pytest.raises(RebarError) as error:
        rank_and_world_size(False, rank, world_size)
    assert error.value.code == "loader-invalid-argument"


@pytest.mark.usefixtures("no_torchrun")
def test_threads_per_process_divides_the_cores_by_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(24)))
    assert threads_per_process(100) == 100
    assert threads_per_process(-1) == threads_per_process(0) == 24
    assert threads_per_process(0, 8) == 3
    assert threads_per_process(0, 100) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert threads_per_process(-1) == 6
