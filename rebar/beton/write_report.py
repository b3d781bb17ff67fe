"""How large a file will be and how long its writing takes, from a few of its images.

What became of the images of a writing: counted, and the bad ones named.
"""

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rebar.beton.encode import Encoder, Outcome
from rebar.beton.format import ALLOCATION
from rebar.beton.pages import tables_before_pages
from rebar.errors import RebarError

NUM_SAMPLED = 32
"""Images encoded beforehand."""


@dataclass(frozen=True)
class Estimate:
    """What is to be expected of a writing."""

    num_samples: int
    num_sampled: int
    """Images that were encoded for it."""
    bytes: int
    """Of the file."""
    seconds: float
    """On an otherwise idle machine."""
    bytes_a_image: float
    marker_share: float
    """What restart markers add to the images' bytes, as a share of 1; 0 without."""
    kept_quality_factor: float
    """How many times the bytes images take because their quality is kept; 1 where it is not."""


def estimate(encoder: Encoder, page_size: int, num_workers: int) -> Estimate:
    """Encode a few images, in this process; bad ones among them count as the others on average.

    Raises RebarError where one is bad and the policy is to fail.
    """
    num_samples = len(encoder.order)
    chosen = encoder.order[np.unique(np.linspace(0, num_samples - 1, NUM_SAMPLED).astype(np.int64))]
    encoder.encode(int(chosen[0]))  # kernels are compiled, or loaded from the disk, with the first one
    begin = time.perf_counter()
    sizes = _sizes(encoder, chosen)
    seconds = (time.perf_counter() - begin) / len(chosen)
    mean = float(np.mean(sizes)) if sizes else 1.0
    policy = encoder.policy
    plain, anew = 0.0, 0.0
    if policy.restart_markers and policy.write_mode != "raw":
        plain = sum(_sizes(replace(encoder, policy=replace(policy, restart_markers=False)), chosen))
    if policy.keep_quality and policy.write_mode != "raw":
        anew = sum(_sizes(replace(encoder, policy=replace(policy, keep_quality=False)), chosen))
    return Estimate(
        num_samples=num_samples,
        num_sampled=len(chosen),
        bytes=tables_before_pages(num_samples, page_size)
        + math.ceil(num_samples / max(1.0, page_size // mean)) * page_size
        + num_samples * ALLOCATION.itemsize,
        seconds=seconds * num_samples / num_workers,
        bytes_a_image=mean,
        marker_share=sum(sizes) / plain - 1 if plain else 0.0,
        kept_quality_factor=sum(sizes) / anew if anew else 1.0,
    )


def _sizes(encoder: Encoder, indices: np.ndarray) -> list[int]:
    outcomes = [encoder.encode(int(index)) for index in indices]
    return [outcome.image.data.nbytes for outcome in outcomes if outcome.image is not None]


def check_space(path: Path, needed: int) -> None:
    """Raises RebarError where fewer than ``needed`` bytes are free for ``path``."""
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise RebarError(f"{path.parent}: cannot be written to: {error.strerror}") from None
    if needed > free:
        raise RebarError(
            f"{path}: about {needed / 1e6:,.0f} MB are needed but only {free / 1e6:,.0f} MB are free; free "
            "some space, write elsewhere, or store smaller images"
        )


LISTED = 100
"""Names kept of each kind of odd image; of bad images all are."""


@dataclass(frozen=True)
class WriteReport:
    """What was written."""

    path: Path
    num_samples: int
    bytes: int
    """Size of the file."""
    image_bytes: int
    """What of it is images."""
    seconds: float
    num_encoded: int
    """Images worked on in these seconds: fewer than written where an earlier writing was gone on with."""
    class_counts: np.ndarray
    """int64, the number of samples of every class."""
    expected: Estimate
    """What was to be expected before it began."""
    tally: "Tally"


@dataclass
class Tally:
    """Images by what became of them; the names are in the order of writing."""

    passed_through: int = 0
    encoded: int = 0
    repaired: list[Sequence[str]] = field(default_factory=list)
    """Name and reason."""
    skipped: list[Sequence[str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Of each kind of odd image."""
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, outcome: Outcome) -> None:
        """Count an image."""
        if outcome.image is None:
            self.skipped.append((name, outcome.fault))
            return
        if outcome.fault:
            self.repaired.append((name, outcome.fault))
        if outcome.image.passed_through:
            self.passed_through += 1
        else:
            self.encoded += 1
        for kind in outcome.image.oddities:
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self.names.setdefault(kind, []).append(name)
            del self.names[kind][LISTED:]

    def join(self, later: "Tally") -> None:
        """Count what another tally counted of later images."""
        self.passed_through += later.passed_through
        self.encoded += later.encoded
        self.repaired += later.repaired
        self.skipped += later.skipped
        for kind, count in later.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            self.names[kind] = [*self.names.get(kind, []), *later.names[kind]][:LISTED]

    def to_json(self) -> str:
        """The whole report as text, the same for the same source and settings."""
        bad = {
            key: [{"name": name, "reason": reason} for name, reason in images]
            for key, images in (("repaired", self.repaired), ("skipped", self.skipped))
        }
        content = {
            "passed_through": self.passed_through,
            "encoded": self.encoded,
            "num_repaired": len(self.repaired),
            "num_skipped": len(self.skipped),
            **bad,
            "kinds": {kind: {"count": self.counts[kind], "names": self.names[kind]} for kind in sorted(self.counts)},
        }
        return json.dumps(content, indent=1) + "\n"


def report_path(beton_path: Path | str) -> Path:
    """Where the report on a .beton file's writing lies."""
    path = Path(beton_path)
    return path.with_name(path.name + ".report.json")
