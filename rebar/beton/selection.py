"""The selection of images to write: subsets, classes, shards, order."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rebar.beton.images import Source, blocks_of, labels_of, omitted_by
from rebar.errors import RebarError

SUBSETS = {"tiny": 1_000, "small": 10_000, "medium": 100_000, "large": 500_000}
"""The number of images in each named subset; a smaller source is used completely."""
FULL = ("full", "-1")
WINDOW = 400
"""Images of a source with blocks are shuffled within windows of at least this many."""


@dataclass(frozen=True)
class Selection:
    """A selection of images of a source; None means no limit."""

    subset: str = "full"
    """A name of SUBSETS, "full", or a number of images, balanced across classes."""
    max_classes: int | None = None
    max_samples_per_class: int | None = None
    shuffle: bool = False
    seed: int = 0

    def validate(self) -> None:
        """Raise RebarError if ``subset`` is invalid."""
        subset_size(self.subset)

    @property
    def max_images(self) -> int | None:
        """The number of images; None if it is unlimited or depends on the labels. Raises RebarError."""
        if self.max_classes or self.max_samples_per_class:
            return None  # depends on all labels
        return subset_size(self.subset)

    def apply(self, source: Source) -> tuple[Source, np.ndarray]:
        """Return the source with the selected classes, and the indices of the images to write (int64), in order.

        Raises RebarError if the source has fewer images or classes than specified.
        """
        labels, blocks = labels_of(source), blocks_of(source)
        selected = np.ones(len(labels), bool)
        if self.max_classes:
            source = class_subset = ClassSubset.draw(source, self.max_classes, self.seed)
            labels = class_subset.label_map[labels]
            selected = labels >= 0
        shuffled = _shuffle(len(labels), self.seed)
        if self.max_samples_per_class:
            selected &= _rank_in_class(labels, shuffled) < self.max_samples_per_class
        selected &= _balanced_mask(np.where(selected, labels, -1), shuffled, self.subset)
        if not self.shuffle:
            return source, np.flatnonzero(selected)
        order = shuffled[selected[shuffled]]
        return source, order if blocks is None else _sort_by_windows(order, blocks, self.seed)


@dataclass(frozen=True, eq=False)
class ClassSubset:
    """A source restricted to some classes, with new labels; images keep their indices."""

    source: Source
    class_names: Sequence[str]
    label_map: np.ndarray
    """int64: label in the source -> new label, -1 for classes left out."""

    @staticmethod
    def draw(source: Source, count: int, seed: int) -> "ClassSubset":
        """Draw ``count`` random classes. The result depends only on the seed and the number of classes."""
        total = len(source.class_names)
        if count > total:
            raise RebarError(
                f"--max-classes {count}: the source has only {total} classes. Use a smaller number.",
                code="selection-too-large",
            )
        kept = np.sort(_shuffle(total, seed)[:count])
        label_map = np.full(total, -1, np.int64)
        label_map[kept] = np.arange(count)
        return ClassSubset(source, [source.class_names[label] for label in kept], label_map)

    @property
    def omitted(self) -> Mapping[str, int]:
        """What the source omitted."""
        return omitted_by(self.source)

    def __len__(self) -> int:
        return len(self.source)

    def label(self, index: int) -> int:
        """Return the new label of an image."""
        return int(self.label_map[self.source.label(index)])

    def read(self, index: int) -> bytes:
        """Return the content of the image file."""
        return self.source.read(index)

    def name(self, index: int) -> str:
        """Return the name of the image."""
        return self.source.name(index)


def subset_size(subset: str) -> int | None:
    """Return the number of images of a subset; None for all. Raises RebarError if the subset is invalid."""
    if subset in FULL:
        return None
    if subset in SUBSETS:
        return SUBSETS[subset]
    if subset.isdigit() and int(subset) > 0:
        return int(subset)
    raise RebarError(
        f"--subset {subset} is invalid. Use {', '.join(SUBSETS)}, full, or a number of images.",
        code="subset-invalid",
    )


def balanced_subset(labels: np.ndarray, subset: str, seed: int) -> np.ndarray:
    """Return the indices of a subset, ascending, int64, with the same number of samples per class where possible.

    A smaller subset is contained in a larger one. Raises RebarError if the subset is invalid, or if it is a number
    larger than the number of samples.
    """
    return np.flatnonzero(_balanced_mask(labels, _shuffle(len(labels), seed), subset))


def select_shard(order: np.ndarray, shard: str) -> np.ndarray:
    """Return shard ``I/N`` of the order, I from 0; the concatenation of all shards is the order.

    Raises RebarError if the text is invalid, or if there are more shards than images.
    """
    index, count = parse_shard(shard)
    if count > len(order):
        raise RebarError(
            f"--shard {shard}: there are only {len(order):,} images. Use at most as many shards as images.",
            code="shard-invalid",
        )
    return order[len(order) * index // count : len(order) * (index + 1) // count]


def parse_shard(shard: str) -> tuple[int, int]:
    """Return (I, N) for "I/N". Raises RebarError."""
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found and int(found[1]) < int(found[2]):
        return int(found[1]), int(found[2])
    raise RebarError(
        f"--shard {shard} is not of the form I/N. Pass shard I of N, with I from 0 to N-1, such as 0/4 to 3/4.",
        code="shard-invalid",
    )


def shard_path(path: Path, shard: str) -> Path:
    """Return the path of a shard: train.beton becomes train-00002-of-00008.beton."""
    index, count = parse_shard(shard)
    return path.with_name(f"{path.stem}-{index:05}-of-{count:05}{path.suffix}")


def _shuffle(count: int, seed: int) -> np.ndarray:
    # Sorts raw draws, because NumPy does not guarantee the result of Generator.permutation across versions.
    return np.argsort(np.random.Philox(key=seed % 2**64).random_raw(count), kind="stable")


def _rank_in_class(labels: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """Return the number of images of the same class that precede each image in the shuffled order."""
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sorted_labels = labels[by_class]
    starts = np.searchsorted(sorted_labels, sorted_labels, side="left")
    ranks = np.empty(len(labels), np.int64)
    ranks[by_class] = np.arange(len(labels)) - starts
    return ranks


def _balanced_mask(labels: np.ndarray, shuffled: np.ndarray, subset: str) -> np.ndarray:
    """Return which images belong to the subset, bool; images with label -1 are excluded."""
    size, available = subset_size(subset), int(np.count_nonzero(labels >= 0))
    eligible = labels >= 0
    if size is None or (subset in SUBSETS and size >= available):
        return eligible
    if size > available:
        raise RebarError(
            f"--subset {subset}: the source has only {available:,} images. Use a smaller number, or full.",
            code="selection-too-large",
        )
    ranks = _rank_in_class(labels, shuffled)[shuffled]
    round_robin = shuffled[np.argsort(ranks, kind="stable")]  # the first image of every class, then the second, ...
    selected = np.zeros(len(labels), bool)
    selected[round_robin[eligible[round_robin]][:size]] = True
    return selected


def _sort_by_windows(order: np.ndarray, blocks: np.ndarray, seed: int) -> np.ndarray:
    """Sort a shuffled order by windows of a few random blocks, so that each block is read only once."""
    used, sizes = np.unique(blocks[order], return_counts=True)
    drawn = _shuffle(len(used), seed)
    preceding = np.concatenate([[0], np.cumsum(sizes[drawn])[:-1]])
    window_of_block = np.zeros(int(blocks.max()) + 1, np.int64)
    window_of_block[used[drawn]] = preceding // WINDOW
    return order[np.argsort(window_of_block[blocks[order]], kind="stable")]
