"""Selection of subsets, classes and shards."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebar.beton.selection import (
    SUBSETS,
    WINDOW,
    Selection,
    balanced_subset,
    parse_shard,
    select_shard,
    shard_path,
    subset_size,
)
from rebar.errors import RebarError


@dataclass
class LabelSource:
    """A source defined by its labels only."""

    labels: np.ndarray
    class_names: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        self.class_names = self.class_names or [f"n{label}" for label in range(int(self.labels.max()) + 1)]

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def read(self, index: int) -> bytes:
        return b"%d" % index

    def name(self, index: int) -> str:
        return str(index)


@dataclass
class BlockLabelSource(LabelSource):
    """The same, read in blocks of ``block_size`` images."""

    block_size: int = 50

    @property
    def blocks(self) -> np.ndarray:
        return np.arange(len(self)) // self.block_size


def uneven(*counts: int) -> LabelSource:
    """Return a source with these numbers of images per class, mixed."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return LabelSource(np.random.default_rng(0).permutation(labels))


def order_of(source: LabelSource, **options: object) -> np.ndarray:
    return Selection(**options).apply(source)[1]  # type: ignore[arg-type]


class TestOrder:
    def test_shuffle_depends_on_the_seed(self) -> None:
        source = uneven(500, 500)
        order = order_of(source, shuffle=True, seed=3)
        assert sorted(order) == list(range(1000))
        assert np.array_equal(order, order_of(source, shuffle=True, seed=3))
        assert not np.array_equal(order, order_of(source, shuffle=True, seed=4))

    def test_shuffle_is_the_same_in_every_version(self) -> None:
        assert order_of(uneven(8), shuffle=True, seed=0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
        halves = LabelSource(np.repeat([0, 1], 4))
        assert order_of(halves, subset="4", shuffle=True, seed=0).tolist() == [0, 2, 5, 4]

    def test_order_without_shuffle_is_ascending(self) -> None:
        assert np.array_equal(order_of(uneven(5, 5), seed=3), np.arange(10))

    def test_blocks_are_read_once_and_mixed_within_windows(self) -> None:
        source = BlockLabelSource(np.arange(10_000) // 100, block_size=50)
        order = order_of(source, shuffle=True, seed=1)
        assert sorted(order) == list(range(10_000))
        blocks = source.blocks[order]
        places = [np.flatnonzero(blocks == block) for block in range(200)]
        assert max(np.ptp(place) for place in places) < WINDOW + 50
        assert len(np.unique(blocks[:400])) == 8
        assert not np.array_equal(np.unique(blocks[:400]), np.arange(8))
        assert np.count_nonzero(np.diff(blocks[:400])) > 200


class TestSubset:
    @pytest.mark.parametrize("subset", ["7", "60", "99"])
    def test_subset_is_balanced_across_classes(self, subset: str) -> None:
        source = uneven(50, 3, 30, 17)
        selected = order_of(source, subset=subset, seed=2)
        counts = np.bincount(source.labels[selected], minlength=4)
        assert counts.sum() == int(subset) == len(set(selected))
        exhausted = counts == [50, 3, 30, 17]
        assert np.ptp(counts[~exhausted]) <= 1
        assert np.all(counts[exhausted] <= counts[~exhausted].min())

    def test_subset_is_the_same_with_and_without_shuffle(self) -> None:
        source = uneven(500, 500)
        shuffled, in_order = (order_of(source, subset="50", shuffle=shuffle, seed=1) for shuffle in (True, False))
        assert len(set(shuffled)) == 50
        assert np.array_equal(np.sort(shuffled), in_order)
        assert np.array_equal(balanced_subset(source.labels, "50", seed=1), in_order)

    def test_smaller_subset_is_contained_in_larger(self) -> None:
        source = uneven(700, 2000, 900)
        tiny, larger = (set(order_of(source, subset=subset, seed=5)) for subset in ("tiny", "2000"))
        assert len(tiny) == SUBSETS["tiny"]
        assert tiny < larger

    def test_subset_names_are_maxima_and_numbers_exact(self) -> None:
        assert len(order_of(uneven(10), subset="small")) == 10
        with pytest.raises(RebarError) as raised:
            order_of(uneven(10), subset="11")
        assert raised.value.code == "selection-too-large"

    @pytest.mark.parametrize(("text", "size"), [("tiny", 1000), ("large", 500_000), ("full", None), ("-1", None)])
    def test_subset_size_of_names_and_numbers(self, text: str, size: int | None) -> None:
        assert subset_size(text) == size

    @pytest.mark.parametrize("text", ["0", "-2", "huge", "1e3", ""])
    def test_subset_size_refuses_invalid_text(self, text: str) -> None:
        with pytest.raises(RebarError) as raised:
            subset_size(text)
        assert raised.value.code == "subset-invalid"


class TestClasses:
    def test_max_classes_draws_classes_with_new_labels(self) -> None:
        train, val = uneven(*[20] * 30), uneven(*[4] * 30)
        chosen, order = Selection(max_classes=10, seed=1).apply(train)
        same, _ = Selection(max_classes=10, seed=1).apply(val)
        assert chosen.class_names == same.class_names == sorted(chosen.class_names, key=lambda n: int(n[1:]))
        assert len(order) == 200
        for index in order:
            assert chosen.class_names[chosen.label(index)] == train.class_names[train.label(index)]
        assert chosen.read(int(order[0])) == b"%d" % order[0]
        other, _ = Selection(max_classes=10, seed=2).apply(train)
        assert other.class_names != chosen.class_names

    def test_max_classes_with_samples_per_class_and_subset(self) -> None:
        source = uneven(*[20] * 30)
        chosen, order = Selection(max_classes=10, max_samples_per_class=6, subset="50", shuffle=True).apply(source)
        assert np.bincount([chosen.label(index) for index in order]).tolist() == [5] * 10

    def test_max_samples_per_class(self) -> None:
        source = uneven(2, 9, 4)
        order = order_of(source, max_samples_per_class=4)
        assert np.bincount(source.labels[order]).tolist() == [2, 4, 4]

    def test_max_classes_refuses_more_than_the_source_has(self) -> None:
        with pytest.raises(RebarError) as raised:
            order_of(uneven(2, 9, 4), max_classes=4)
        assert raised.value.code == "selection-too-large"

    def test_max_classes_keeps_blocks_together(self) -> None:
        source = BlockLabelSource(np.arange(10_000) // 1000, block_size=50)
        _, order = Selection(max_classes=5, shuffle=True).apply(source)
        blocks = source.blocks[order]
        assert max(np.ptp(np.flatnonzero(blocks == block)) for block in np.unique(blocks)) < WINDOW + 50


class TestShards:
    @given(count=st.integers(1, 200), parts=st.integers(1, 40))
    def test_concatenated_shards_equal_the_order(self, count: int, parts: int) -> None:
        order = np.random.default_rng(count).permutation(count)
        if parts > count:
            with pytest.raises(RebarError, match="as many shards as images"):
                select_shard(order, f"0/{parts}")
            return
        shards = [select_shard(order, f"{part}/{parts}") for part in range(parts)]
        assert np.array_equal(np.concatenate(shards), order)
        assert np.ptp([len(shard) for shard in shards]) <= 1

    @pytest.mark.parametrize("text", ["4/4", "1", "1/0", "-1/4", "a/b", "1/4/2"])
    def test_parse_shard_refuses_invalid_text(self, text: str) -> None:
        with pytest.raises(RebarError) as raised:
            parse_shard(text)
        assert raised.value.code == "shard-invalid"

    def test_shard_path_contains_number_and_count(self) -> None:
        assert shard_path(Path("/a/train.beton"), "2/8") == Path("/a/train-00002-of-00008.beton")
