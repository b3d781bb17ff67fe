"""How large a file will be and how long its writing takes, from a few of its pictures."""

import math
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rebar.beton.encoder import Encoder
from rebar.beton.format import ALLOCATION
from rebar.beton.pages import tables_before_pages
from rebar.errors import RebarError

NUM_SAMPLED = 32
"""Pictures encoded beforehand."""


@dataclass(frozen=True)
class Estimate:
    """What is to be expected of a writing."""

    num_samples: int
    num_sampled: int
    """Pictures that were encoded for it."""
    bytes: int
    """Of the file."""
    seconds: float
    """On an otherwise idle machine."""
    bytes_a_picture: float
    marker_share: float
    """What restart markers add to the pictures' bytes, as a share of 1; 0 without."""
    kept_quality_factor: float
    """How many times the bytes pictures take because their quality is kept; 1 where it is not."""


def estimate(encoder: Encoder, page_size: int, num_workers: int) -> Estimate:
    """Encode a few pictures, in this process; bad ones among them count as the others on average.

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
        bytes_a_picture=mean,
        marker_share=sum(sizes) / plain - 1 if plain else 0.0,
        kept_quality_factor=sum(sizes) / anew if anew else 1.0,
    )


def _sizes(encoder: Encoder, indices: np.ndarray) -> list[int]:
    outcomes = [encoder.encode(int(index)) for index in indices]
    return [outcome.picture.data.nbytes for outcome in outcomes if outcome.picture is not None]


def check_space(path: Path, needed: int) -> None:
    """Raises RebarError where fewer than ``needed`` bytes are free for ``path``."""
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise RebarError(f"{path.parent}: cannot be written to: {error.strerror}") from None
    if needed > free:
        raise RebarError(
            f"{path}: about {needed / 1e6:,.0f} MB are needed but only {free / 1e6:,.0f} MB are free; free "
            "some space, write elsewhere, or store smaller pictures"
        )
