"""Estimate the size and duration of writing a .beton file, and report on its images."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rebar.beton.encode import Encoder, Outcome
from rebar.beton.format import ALLOCATION
from rebar.beton.pages import size_before_pages

NUM_SAMPLED = 32
"""Images encoded for an estimate."""
MAX_NAMES = 100
"""Names listed per kind of irregular image. Bad images are all listed."""


@dataclass(frozen=True)
class Estimate:
    """The expected size and duration of writing a file."""

    num_samples: int
    num_sampled: int
    """Images that were encoded for the estimate."""
    bytes: int
    """Size of the file."""
    seconds: float
    """Duration on an otherwise idle machine."""
    bytes_per_image: float
    marker_overhead: float
    """Bytes added by restart markers, as a fraction of the bytes without them; 0 without restart markers."""
    keep_quality_factor: float
    """Ratio of the bytes with ``keep_quality`` to the bytes without; 1 if it is off."""


def estimate(encoder: Encoder, page_size: int, num_workers: int) -> Estimate:
    """Encode a few images in this process and extrapolate. Bad images are ignored.

    Raises RebarError for a bad image if the policy is to fail.
    """
    num_samples = len(encoder.order)
    sampled = encoder.order[np.unique(np.linspace(0, num_samples - 1, NUM_SAMPLED).astype(np.int64))]
    begin = time.perf_counter()
    sizes = _encoded_sizes(encoder, sampled)
    seconds = (time.perf_counter() - begin) / len(sampled)
    mean = float(np.mean(sizes)) if sizes else 1.0
    policy = encoder.policy
    without_markers, requantized = 0.0, 0.0
    if policy.restart_markers and policy.write_mode != "raw":
        plain_encoder = replace(encoder, policy=replace(policy, restart_markers=False))
        without_markers = sum(_encoded_sizes(plain_encoder, sampled))
    if policy.keep_quality and policy.write_mode != "raw":
        requantized = sum(_encoded_sizes(replace(encoder, policy=replace(policy, keep_quality=False)), sampled))
    return Estimate(
        num_samples=num_samples,
        num_sampled=len(sampled),
        bytes=size_before_pages(num_samples, page_size)
        + math.ceil(num_samples / max(1.0, page_size // mean)) * page_size
        + num_samples * ALLOCATION.itemsize,
        seconds=seconds * num_samples / num_workers,
        bytes_per_image=mean,
        marker_overhead=sum(sizes) / without_markers - 1 if without_markers else 0.0,
        keep_quality_factor=sum(sizes) / requantized if requantized else 1.0,
    )


def _encoded_sizes(encoder: Encoder, indices: np.ndarray) -> list[int]:
    outcomes = [encoder.encode(int(index)) for index in indices]
    return [outcome.image.data.nbytes for outcome in outcomes if outcome.image is not None]


@dataclass(frozen=True)
class WriteReport:
    """The result of :func:`rebar.beton.writer.write_beton`."""

    path: Path
    num_samples: int
    bytes: int
    """Size of the file."""
    image_bytes: int
    """Bytes of all images."""
    seconds: float
    num_encoded: int
    """Images processed in these seconds; fewer than in the file if the run was resumed."""
    class_counts: np.ndarray
    """Samples per class, int64."""
    expected: Estimate
    """The estimate before writing."""
    tally: "Tally"
    omitted: Mapping[str, int]
    """Kind of file or sample that the source omitted -> how many."""


@dataclass
class Tally:
    """Counts of images by outcome; names are in the order of writing."""

    transcoded: int = 0
    """JPEGs transcoded losslessly: their pixels are bit-identical."""
    encoded: int = 0
    """Images re-encoded, or stored as raw pixels."""
    repaired: list[Sequence[str]] = field(default_factory=list)
    """(name, reason)"""
    skipped: list[Sequence[str]] = field(default_factory=list)
    """(name, reason)"""
    counts: dict[str, int] = field(default_factory=dict)
    """Kind of irregularity -> number of images."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """Kind of irregularity -> names of images."""

    def add(self, name: str, outcome: Outcome) -> None:
        """Count an image."""
        if outcome.image is None:
            self.skipped.append((name, outcome.fault))
            return
        if outcome.fault:
            self.repaired.append((name, outcome.fault))
        if outcome.image.lossless:
            self.transcoded += 1
        else:
            self.encoded += 1
        for kind in outcome.image.irregularities:
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self.names.setdefault(kind, []).append(name)
            del self.names[kind][MAX_NAMES:]

    def extend(self, later: "Tally") -> None:
        """Add the counts of later images."""
        self.transcoded += later.transcoded
        self.encoded += later.encoded
        self.repaired += later.repaired
        self.skipped += later.skipped
        for kind, count in later.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            self.names[kind] = [*self.names.get(kind, []), *later.names[kind]][:MAX_NAMES]

    def to_json(self, omitted: Mapping[str, int]) -> str:
        """Return the report as JSON text. Equal sources and settings give equal reports.

        ``omitted``: see :class:`WriteReport`.
        """
        bad = {
            key: [{"name": name, "reason": reason} for name, reason in images]
            for key, images in (("repaired", self.repaired), ("skipped", self.skipped))
        }
        content = {
            "passed_through": self.transcoded,
            "encoded": self.encoded,
            "num_repaired": len(self.repaired),
            "num_skipped": len(self.skipped),
            **bad,
            "omitted": dict(omitted),
            "kinds": {kind: {"count": self.counts[kind], "names": self.names[kind]} for kind in sorted(self.counts)},
        }
        return json.dumps(content, indent=1) + "\n"


def report_path(beton_path: Path | str) -> Path:
    """Return the path of the report on a .beton file's images."""
    path = Path(beton_path)
    return path.with_name(path.name + ".report.json")
