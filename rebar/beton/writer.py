"""Writing a .beton file: worker processes encode the pictures, this process lays them into pages.

The bytes of the file depend on the source, the order and the policy, not on how many processes there
are. The file appears under its name only when it is whole and on disk; whatever goes wrong before
leaves nothing behind.
"""

import math
import shutil
import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from rebar.beton.format import ALLOCATION, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, MIN_PAGE_SIZE
from rebar.beton.images import EncodedPicture, ImagePolicy, PictureError, encode_picture
from rebar.beton.pages import SAMPLE, PageWriter
from rebar.beton.processes import map_in_processes
from rebar.beton.sidecar import Sidecar, sidecar_path
from rebar.beton.sources import Source
from rebar.errors import RebarError
from rebar.replacing import replacing

NUM_SAMPLED = 32
"""Pictures encoded beforehand to estimate the size of the file."""


@dataclass(frozen=True)
class WriteReport:
    """What was written."""

    path: Path
    num_samples: int
    bytes: int
    """Size of the file."""
    picture_bytes: int
    """What of it is pictures."""
    seconds: float
    class_counts: np.ndarray
    """int64, the number of samples of every class."""
    marker_share: float
    """What restart markers add to the pictures' bytes, as a share of 1, from a few pictures; 0 without."""


@dataclass(frozen=True)
class _Encoder:
    """Encodes a run of the order; what the worker processes are given."""

    source: Source
    policy: ImagePolicy
    order: np.ndarray

    def __call__(self, run: tuple[int, int]) -> list[tuple[int, EncodedPicture]]:
        cv2.setNumThreads(1)  # there is a process for every core already
        return [self.encode(int(index)) for index in self.order[slice(*run)]]

    def picture_sizes(self, places: np.ndarray) -> list[int]:
        """Bytes of the pictures at a few places of the order."""
        return [self.encode(int(index))[1].data.nbytes for index in self.order[places]]

    def encode(self, index: int) -> tuple[int, EncodedPicture]:
        """The label and the picture of source index ``index``. Raises RebarError naming the picture."""
        try:
            return self.source.label(index), encode_picture(self.source.read(index), self.policy, index)
        except PictureError as error:
            raise RebarError(f"{self.source.name(index)}: {error}") from None
        except OSError as error:
            reason = error.strerror or error
            raise RebarError(f"{self.source.name(index)}: cannot be read: {reason}") from None


def write_beton(
    source: Source,
    path: Path | str,
    *,
    policy: ImagePolicy,
    order: np.ndarray,
    num_workers: int = 1,
    chunk_size: int = 100,
    page_size: int = DEFAULT_PAGE_SIZE,
    progress: bool = True,
) -> WriteReport:
    """Write pictures ``order`` of ``source``, in that order, to ``path`` and a sidecar beside it.

    ``order`` holds indices into the source; ``chunk_size`` is the number of pictures that a worker
    process takes at a time; ``page_size`` is in bytes, a power of two. An existing file is replaced.

    Raises RebarError, leaving nothing behind and an existing file as it was: for a picture that cannot
    be read, decoded or fitted into a page, a full disk, and a worker process that dies.
    """
    path = Path(path)
    if page_size & (page_size - 1) or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE:
        raise ValueError(f"page_size must be a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}")
    if len(order) and not 0 <= int(np.min(order)) <= int(np.max(order)) < len(source):
        raise ValueError(f"order must hold indices from 0 to {len(source) - 1}")
    if len(order) == 0:
        raise RebarError(f"{path}: there is nothing to write: no pictures were chosen")
    begin = time.monotonic()
    encoder = _Encoder(source, policy, np.ascontiguousarray(order, np.int64))
    chunks = [(start, min(start + chunk_size, len(order))) for start in range(0, len(order), chunk_size)]
    chosen = np.unique(np.linspace(0, len(order) - 1, NUM_SAMPLED).astype(np.int64))
    sample = encoder.picture_sizes(chosen)
    _check_space(path, _estimate_bytes(sample, len(order), page_size))

    with replacing(sidecar_path(path), path) as (sidecar_file, file):  # a .beton never lacks its sidecar
        pages = PageWriter(file, len(order), page_size)
        encoded = map_in_processes(encoder, chunks, num_workers=min(num_workers, len(chunks)))
        with closing(encoded), _progress_bar(len(order), enabled=progress) as bar:
            for chunk in encoded:
                for label, picture in chunk:
                    if picture.data.nbytes > page_size:
                        name = source.name(int(order[pages.num_samples]))
                        raise RebarError(_too_large(name, picture, page_size))
                    pages.append(label, picture)
                megabytes_per_second = pages.picture_bytes / 1e6 / (time.monotonic() - begin)
                bar.set_postfix_str(f"{megabytes_per_second:.0f} MB/s", refresh=False)
                bar.update(len(chunk))
        num_bytes, checksums = pages.finish()
        sidecar = Sidecar(
            num_samples=len(order),
            bytes=num_bytes,
            class_names=tuple(source.class_names),
            images={key: value for key, value in asdict(policy).items() if key != "seed"},
            seed=policy.seed,
            checksums=checksums,
        )
        sidecar_file.write(sidecar.to_json().encode())
    counts = np.bincount(pages.samples["f1"], minlength=len(source.class_names))
    seconds = time.monotonic() - begin
    markers = _marker_share(encoder, chosen, sample)
    return WriteReport(path, len(order), num_bytes, pages.picture_bytes, seconds, counts, markers)


def _estimate_bytes(sample: list[int], num_samples: int, page_size: int) -> int:
    """The likely size of the file, from the bytes of a few pictures."""
    pictures_a_page = max(1.0, page_size // np.mean(sample))
    tables = num_samples * (SAMPLE.itemsize + ALLOCATION.itemsize)
    return math.ceil(num_samples / pictures_a_page) * page_size + tables


def _marker_share(encoder: _Encoder, chosen: np.ndarray, with_markers: list[int]) -> float:
    """What restart markers add, from the same few pictures encoded without."""
    if not encoder.policy.restart_markers:
        return 0.0
    plain = replace(encoder, policy=replace(encoder.policy, restart_markers=False))
    return sum(with_markers) / sum(plain.picture_sizes(chosen)) - 1


def _check_space(path: Path, needed: int) -> None:
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise RebarError(f"{path.parent}: cannot be written to: {error.strerror}") from None
    if needed > free:
        raise RebarError(
            f"{path}: about {needed / 1e6:,.0f} MB are needed but only {free / 1e6:,.0f} MB are free; free "
            "some space, write elsewhere, or store smaller pictures"
        )


def _too_large(name: str, picture: EncodedPicture, page_size: int) -> str:
    return (
        f"{name}: takes {picture.data.nbytes:,} bytes ({picture.width} x {picture.height} pixels), more than "
        f"a page of {page_size:,}; limit the resolution, or store it as JPEG"
    )


def _progress_bar(total: int, *, enabled: bool) -> "tqdm[None]":
    between = 0.5 if sys.stderr.isatty() else 30.0  # seconds; every refresh is a line of a log
    return tqdm(total=total, disable=not enabled, unit=" pictures", mininterval=between, dynamic_ncols=True)
