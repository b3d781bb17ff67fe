"""Which images of a source are written, and in which order: subsets, classes, shards."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rebar.beton.source import Source, blocks_of, labels_of
from rebar.errors import RebarError

SUBSETS = {"tiny": 1_000, "small": 10_000, "medium": 100_000, "large": 500_000}
"""Images that the named subsets have, where the source has as many."""
FULL = ("full", "-1")
WINDOW = 400
"""Images at least that are mixed at a time where they can only be read by blocks."""


@dataclass(frozen=True)
class Selection:
    """What to take of a source; None takes all."""

    subset: str = "full"
    """A name of SUBSETS, "full", or a number of images, in equal shares of the classes."""
    max_classes: int | None = None
    max_samples_per_class: int | None = None
    shuffle: bool = False
    seed: int = 0

    def check(self) -> None:
        """Raises RebarError where ``subset`` is none."""
        subset_size(self.subset)

    @property
    def at_most(self) -> int | None:
        """The number of images, as far as it is known without the source. Raises RebarError."""
        if self.max_classes or self.max_samples_per_class:
            return None  # those of all images
        return subset_size(self.subset)

    def apply(self, source: Source) -> tuple[Source, np.ndarray]:
        """The source with its chosen classes, and the images to write of it, int64, in the order of writing.

        Raises RebarError where there are fewer images or classes than asked for.
        """
        labels, blocks = labels_of(source), blocks_of(source)
        chosen = np.ones(len(labels), bool)
        if self.max_classes:
            source = renumbered = ChosenClasses.of(source, self.max_classes, self.seed)
            labels = renumbered.numbers[labels]
            chosen = labels >= 0
        shuffled = _shuffled(len(labels), self.seed)
        if self.max_samples_per_class:
            chosen &= _place_in_class(labels, shuffled) < self.max_samples_per_class
        chosen &= _balanced(np.where(chosen, labels, -1), shuffled, self.subset)
        if not self.shuffle:
            return source, np.flatnonzero(chosen)
        order = shuffled[chosen[shuffled]]
        return source, order if blocks is None else _by_windows(order, blocks, self.seed)


@dataclass(frozen=True, eq=False)
class ChosenClasses:
    """A source of which some classes are used, numbered anew; the images keep their numbers."""

    source: Source
    class_names: Sequence[str]
    numbers: np.ndarray
    """int64: label in the source -> label, -1 where the class is not used."""

    @staticmethod
    def of(source: Source, count: int, seed: int) -> "ChosenClasses":
        """``count`` classes, drawn by the seed: the same ones from every source with the same classes."""
        total = len(source.class_names)
        if count > total:
            raise RebarError(f"--max-classes {count}: there are only {total}")
        kept = np.sort(_shuffled(total, seed)[:count])
        numbers = np.full(total, -1, np.int64)
        numbers[kept] = np.arange(count)
        return ChosenClasses(source, [source.class_names[label] for label in kept], numbers)

    def __len__(self) -> int:
        return len(self.source)

    def label(self, index: int) -> int:
        """The new number of the image's class."""
        return int(self.numbers[self.source.label(index)])

    def read(self, index: int) -> bytes:
        """The image as it is stored."""
        return self.source.read(index)

    def name(self, index: int) -> str:
        """What to call the image in messages."""
        return self.source.name(index)


def subset_size(subset: str) -> int | None:
    """The number of images that a subset means; None for all. Raises RebarError for anything else."""
    if subset in FULL:
        return None
    if subset in SUBSETS:
        return SUBSETS[subset]
    if subset.isdigit() and int(subset) > 0:
        return int(subset)
    raise RebarError(f"--subset {subset}: expected {', '.join(SUBSETS)}, full, or a number of images")


def balanced_subset(labels: np.ndarray, subset: str, seed: int) -> np.ndarray:
    """The numbers of the samples of a subset, ascending, int64: as many of every class as there are.

    A smaller subset is part of a larger one. Raises RebarError as :func:`subset_size` does, and where a number
    is asked for and there are fewer.
    """
    return np.flatnonzero(_balanced(labels, _shuffled(len(labels), seed), subset))


def shard_of(order: np.ndarray, shard: str) -> np.ndarray:
    """Part ``I/N`` of the order, I from 0 on: the parts, one behind the other, are the whole.

    Raises RebarError where the text is no such part, or where there are more parts than images.
    """
    part, parts = parse_shard(shard)
    if parts > len(order):
        raise RebarError(f"--shard {shard}: there are only {len(order):,} images to share out")
    return order[len(order) * part // parts : len(order) * (part + 1) // parts]


def parse_shard(shard: str) -> tuple[int, int]:
    """(I, N) of "I/N". Raises RebarError."""
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found and int(found[1]) < int(found[2]):
        return int(found[1]), int(found[2])
    raise RebarError(f"--shard {shard}: expected I/N, part I of N parts, I from 0 to N-1: 0/4, 1/4, 2/4 and 3/4")


def shard_path(path: Path, shard: str) -> Path:
    """The file of a part: train.beton becomes train-00002-of-00008.beton."""
    part, parts = parse_shard(shard)
    return path.with_name(f"{path.stem}-{part:05}-of-{parts:05}{path.suffix}")


def _shuffled(count: int, seed: int) -> np.ndarray:
    # Sorting raw draws, because numpy may change what Generator.permutation makes of a seed.
    return np.argsort(np.random.Philox(key=seed % 2**64).random_raw(count), kind="stable")


def _place_in_class(labels: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """How many images of its class come before each image in the shuffled order."""
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sorted_labels = labels[by_class]
    starts = np.searchsorted(sorted_labels, sorted_labels, side="left")
    places = np.empty(len(labels), np.int64)
    places[by_class] = np.arange(len(labels)) - starts
    return places


def _balanced(labels: np.ndarray, shuffled: np.ndarray, subset: str) -> np.ndarray:
    """Which images the subset has; those of label -1 are none of it."""
    wanted, available = subset_size(subset), int(np.count_nonzero(labels >= 0))
    chosen = labels >= 0
    if wanted is None or (subset in SUBSETS and wanted >= available):
        return chosen
    if wanted > available:
        raise RebarError(f"--subset {subset} does not fit the {available:,} images found; full takes all")
    places = _place_in_class(labels, shuffled)[shuffled]
    turns = shuffled[np.argsort(places, kind="stable")]  # the first of every class, then every second, ...
    taken = np.zeros(len(labels), bool)
    taken[turns[chosen[turns]][:wanted]] = True
    return taken


def _by_windows(order: np.ndarray, blocks: np.ndarray, seed: int) -> np.ndarray:
    """The shuffled order, sorted by windows of a few blocks, so that each block is read in one go."""
    used, sizes = np.unique(blocks[order], return_counts=True)
    drawn = _shuffled(len(used), seed)
    before = np.concatenate([[0], np.cumsum(sizes[drawn])[:-1]])
    window_of_block = np.zeros(int(blocks.max()) + 1, np.int64)
    window_of_block[used[drawn]] = before // WINDOW
    return order[np.argsort(window_of_block[blocks[order]], kind="stable")]
