"""Writing a .beton file: worker processes encode the images, this process lays them into pages.

The bytes of the file depend on the source, the order and the policy, not on how many processes there are, nor on how
often the writing was broken off. The file appears under its name only when it is whole and on disk; what was written
before that is kept beside it, and the same call goes on from there.
"""

import hashlib
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
from tqdm import tqdm

import rebar
from rebar.beton.encode import Encoder, ImagePolicy, OnBadImage, Outcome
from rebar.beton.format import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, MIN_PAGE_SIZE
from rebar.beton.partial_file import Partial, open_partial
from rebar.beton.sidecar import Checksums, Sidecar, sidecar_path
from rebar.beton.source import Source
from rebar.beton.worker_pool import map_in_processes
from rebar.beton.write_report import Estimate, Tally, WriteReport, check_space, estimate, report_path
from rebar.errors import RebarError
from rebar.storage.atomic_write import atomic_write, sync_folder, write_error

_CHUNK_BYTES = 1 << 20  # of images that a worker hands over at once
_MOST_IN_CHUNK = 100


def write_beton(
    source: Source,
    path: Path | str,
    *,
    policy: ImagePolicy,
    order: np.ndarray,
    on_bad_image: OnBadImage = "fail",
    num_workers: int = 1,
    chunk_size: int = 0,
    page_size: int = DEFAULT_PAGE_SIZE,
    restart: bool = False,
    progress: bool = True,
    on_estimate: Callable[[Estimate], None] | None = None,
) -> WriteReport:
    """Write images ``order`` of ``source``, in that order, to ``path``, with a sidecar and a report beside it.

    ``order`` holds indices into the source; ``chunk_size`` is the number of images that a worker process takes at a
    time, 0 for as many as make up about a megabyte; ``page_size`` is in bytes, a power of two. An existing file is
    replaced. What an earlier call with the same arguments wrote before it was broken off is gone on with, or with
    ``restart`` thrown away. ``on_estimate`` is called with what is to be expected, before the writing begins.

    Raises RebarError, leaving an existing file as it was and keeping the pages written: for an image that cannot be
    read, for one that cannot be decoded or fitted into a page where ``on_bad_image`` is ``fail``, a full disk, a worker
    process that dies, and where what is there to go on with is of another source, policy or order.
    """
    path = Path(path)
    _check_arguments(source, path, order, page_size)
    begin = time.monotonic()
    encoder = Encoder(source, policy, np.ascontiguousarray(order, np.int64), on_bad_image, page_size)
    expected = estimate(encoder, page_size, num_workers)
    if on_estimate:
        on_estimate(expected)
    chunk_size = chunk_size or int(np.clip(_CHUNK_BYTES // expected.bytes_a_image, 1, _MOST_IN_CHUNK))
    try:
        with open_partial(path, _job(encoder), len(order), page_size, restart=restart) as partial:
            tally = _tally_kept(partial, on_bad_image)
            start = partial.kept[-1].position if partial.kept else 0
            try:
                check_space(path, expected.bytes - len(partial.kept) * page_size)
                _write_pages(encoder, partial, tally, start, num_workers, chunk_size, progress=progress)
                num_bytes, checksums = partial.pages.write_tables()
                _finish(partial, encoder, num_bytes, checksums, tally)
            except OSError as error:
                raise _with_hint(write_error(path, error), partial) from None
            except RebarError as error:
                raise _with_hint(error, partial) from None
    except OSError as error:
        raise write_error(path, error) from None
    return WriteReport(
        path=path,
        num_samples=partial.pages.num_samples,
        bytes=num_bytes,
        image_bytes=partial.pages.image_bytes,
        seconds=time.monotonic() - begin,
        num_encoded=len(order) - start,
        class_counts=np.bincount(partial.pages.samples["f1"], minlength=len(source.class_names)),
        expected=expected,
        tally=tally,
    )


def _check_arguments(source: Source, path: Path, order: np.ndarray, page_size: int) -> None:
    if page_size & (page_size - 1) or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE:
        raise ValueError(f"page_size must be a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}")
    if len(order) and not 0 <= int(np.min(order)) <= int(np.max(order)) < len(source):
        raise ValueError(f"order must hold indices from 0 to {len(source) - 1}")
    if len(order) == 0:
        raise RebarError(f"{path}: there is nothing to write: no images were chosen")


def _job(encoder: Encoder) -> dict[str, Any]:
    """What the file's bytes depend on, in words that a message can use."""
    images = hashlib.sha256()
    for index in map(int, encoder.order):
        name, label = encoder.source.name(index), encoder.source.label(index)
        images.update(f"{name}\0{label}\n".encode("utf-8", "surrogateescape"))
    return {
        "version of Rebar": rebar.__version__,
        "version of OpenCV": cv2.__version__,
        "version of Pillow": PIL.__version__,
        "image policy": asdict(encoder.policy),
        "page size": encoder.page_size,
        "list of classes": list(encoder.source.class_names),
        "source or order of images": images.hexdigest(),
    }


def _tally_kept(partial: Partial, on_bad_image: OnBadImage) -> Tally:
    """What earlier writings counted. Raises RebarError where bad images had been treated in another way."""
    tally = Tally()
    for kept in partial.kept:
        tally.join(Tally(**kept.note["tally"]))
        if kept.note["on_bad_image"] not in (on_bad_image, "fail") and (tally.skipped or tally.repaired):
            raise RebarError(
                f"{partial.path}: bad images were met before with --on-bad-image {kept.note['on_bad_image']}, so it "
                "cannot be gone on with in another way; give that, or --restart to throw away what was written"
            )
    return tally


def _write_pages(
    encoder: Encoder,
    partial: Partial,
    tally: Tally,
    start: int,
    num_workers: int,
    chunk_size: int,
    *,
    progress: bool,
) -> None:
    """Encode the images from position ``start`` of the order on and lay them into pages."""
    pages, source, order = partial.pages, encoder.source, encoder.order
    chunks = [(first, min(first + chunk_size, len(order))) for first in range(start, len(order), chunk_size)]
    of_page = Tally()
    begin, bytes_before, position = time.monotonic(), pages.image_bytes, start
    with closing(_encode(encoder, chunks, num_workers)) as encoded, _bar(start, len(order), enabled=progress) as bar:
        for chunk in encoded:
            for outcome in chunk:
                if outcome.image is not None:
                    if not pages.fits(outcome.image.data.nbytes):
                        _end_page(partial, position, of_page, encoder.on_bad_image)
                        tally.join(of_page)
                        of_page = Tally()
                    pages.append(outcome.label, outcome.image)
                of_page.add(source.name(int(order[position])), outcome)
                position += 1
            megabytes_per_second = (pages.image_bytes - bytes_before) / 1e6 / (time.monotonic() - begin)
            bar.set_postfix_str(f"{megabytes_per_second:.0f} MB/s", refresh=False)
            bar.update(len(chunk))
    if pages.num_samples == 0:
        name, reason = of_page.skipped[0]
        raise RebarError(f"{partial.path}: there is nothing to write, all images are bad; {name}: {reason}")
    if start < len(order):
        _end_page(partial, position, of_page, encoder.on_bad_image)
        tally.join(of_page)


def _encode(encoder: Encoder, chunks: list[tuple[int, int]], num_workers: int) -> Generator[list[Outcome], None, None]:
    if chunks:
        yield from map_in_processes(encoder, chunks, num_workers=min(num_workers, len(chunks)))


def _end_page(partial: Partial, position: int, of_page: Tally, on_bad_image: OnBadImage) -> None:
    partial.record(partial.pages.write_page(), position, {"tally": asdict(of_page), "on_bad_image": on_bad_image})


def _finish(partial: Partial, encoder: Encoder, num_bytes: int, checksums: Checksums, tally: Tally) -> None:
    """Write what goes beside the file, then give all of them their names: a .beton never lacks its sidecar."""
    policy = encoder.policy
    sidecar = Sidecar(
        num_samples=partial.pages.num_samples,
        bytes=num_bytes,
        class_names=tuple(encoder.source.class_names),
        images={key: value for key, value in asdict(policy).items() if key != "seed"},
        seed=policy.seed,
        checksums=checksums,
    )
    with atomic_write(report_path(partial.path), sidecar_path(partial.path)) as (report_file, sidecar_file):
        report_file.write(tally.to_json().encode())
        sidecar_file.write(sidecar.to_json().encode())
    partial.finish()
    sync_folder(partial.path.parent)


def _with_hint(error: RebarError, partial: Partial) -> RebarError:
    kept = partial.pages.page_checksums
    if not kept:
        return error
    megabytes = len(kept) * partial.pages.page_size / 1e6
    return RebarError(f"{error}. {megabytes:,.0f} MB are kept: the same command goes on from there")


def _bar(start: int, total: int, *, enabled: bool) -> "tqdm[None]":
    between = 0.5 if sys.stderr.isatty() else 30.0  # seconds; every refresh is a line of a log
    return tqdm(
        total=total, initial=start, disable=not enabled, unit=" images", mininterval=between, dynamic_ncols=True
    )
