"""Write .beton files: worker processes encode the images, and this process arranges them in pages.

The bytes of the file depend on the source, the order and the policy, but not on the number of processes or on
interruptions. The file is renamed to its final name once it is complete and on disk.
"""

import hashlib
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL

import rebar
from rebar.beton.encode import Encoder, ImagePolicy, OnBadImage, Outcome
from rebar.beton.format import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, MIN_PAGE_SIZE
from rebar.beton.images import Source, omitted_by
from rebar.beton.partial_file import PartialFile, open_partial
from rebar.beton.sidecar import Checksums, Sidecar, sidecar_path
from rebar.beton.worker_pool import map_in_processes
from rebar.beton.write_report import Estimate, Tally, WriteReport, estimate, report_path
from rebar.cli import escape_undecodable, progress_bar
from rebar.errors import RebarError
from rebar.storage.files import atomic_write, require_space, sync_folder, write_error

_CHUNK_BYTES = 1 << 20  # images per task of a worker, if chunk_size is 0
_MAX_CHUNK_SIZE = 100


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
    """Write images of ``source`` to ``path``, with a sidecar and a report next to it.

    Args:
        order: indices of the images to write, in this order, ``[n]``.
        num_workers: number of worker processes.
        chunk_size: images per task of a worker process; 0 chooses about a megabyte.
        page_size: bytes, a power of two.
        restart: discard the unfinished file of an interrupted call. By default, a call with the same arguments
            resumes it.
        on_estimate: called with the expected size and duration before writing starts.

    An existing file is replaced. Raises RebarError if an image cannot be read, cannot be decoded or does not fit into
    a page (unless ``on_bad_image`` is ``skip`` or ``repair``), the disk is full, a worker process dies, or the
    unfinished file belongs to another source, policy or order. After an error, the existing file and the pages written
    so far are kept.
    """
    path = Path(path)
    _check_arguments(source, path, order, page_size)
    encoder = Encoder(source, policy, np.ascontiguousarray(order, np.int64), on_bad_image, page_size)
    encoder.encode(int(encoder.order[0]))  # loads or compiles the kernels, once per machine; not part of the duration
    begin = time.monotonic()
    expected = estimate(encoder, page_size, num_workers)
    if on_estimate:
        on_estimate(expected)
    chunk_size = chunk_size or int(np.clip(_CHUNK_BYTES // expected.bytes_per_image, 1, _MAX_CHUNK_SIZE))
    try:
        with open_partial(path, _describe_job(encoder), len(order), page_size, restart=restart) as partial:
            tally = _recovered_tally(partial, on_bad_image)
            start = partial.recovered[-1].position if partial.recovered else 0
            try:
                require_space(path, expected.bytes - len(partial.recovered) * page_size)
                _write_pages(encoder, partial, tally, start, num_workers, chunk_size, progress=progress)
                num_bytes, checksums = partial.pages.write_tables()
                _finish(partial, encoder, num_bytes, checksums, tally)
            except OSError as error:
                raise _add_resume_hint(write_error(path, error), partial) from None
            except RebarError as error:
                raise _add_resume_hint(error, partial) from None
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
        omitted=omitted_by(source),
    )


def _check_arguments(source: Source, path: Path, order: np.ndarray, page_size: int) -> None:
    if page_size & (page_size - 1) or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE:
        raise ValueError(f"page_size must be a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}")
    if len(order) and not 0 <= int(np.min(order)) <= int(np.max(order)) < len(source):
        raise ValueError(f"order must contain indices from 0 to {len(source) - 1}")
    if not path.parent.is_dir():
        raise RebarError(f"{path.parent}: no such folder. Create it first.", code="write-target-invalid")
    if len(order) == 0:
        raise RebarError(f"{path}: no images were selected. Select at least one.", code="write-no-images")


def _describe_job(encoder: Encoder) -> dict[str, Any]:
    """Return all inputs that determine the file's bytes; the keys are used in error messages."""
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


def _recovered_tally(partial: PartialFile, on_bad_image: OnBadImage) -> Tally:
    """Return the tally of the recovered pages. Raises RebarError if their bad images were handled differently."""
    tally = Tally()
    for record in partial.recovered:
        tally.extend(Tally(**record.note["tally"]))
        previous = record.note["on_bad_image"]
        if previous not in (on_bad_image, "fail") and (tally.skipped or tally.repaired):
            raise RebarError(
                f"{partial.path}: the unfinished file contains bad images handled with --on-bad-image {previous}. Pass "
                "the same option to resume it, or add --restart to discard it.",
                code="write-job-mismatch",
            )
    return tally


def _write_pages(
    encoder: Encoder,
    partial: PartialFile,
    tally: Tally,
    start: int,
    num_workers: int,
    chunk_size: int,
    *,
    progress: bool,
) -> None:
    """Encode the images from position ``start`` of the order, and write them page by page."""
    pages, source, order = partial.pages, encoder.source, encoder.order
    chunks = [(first, min(first + chunk_size, len(order))) for first in range(start, len(order), chunk_size)]
    page_tally = Tally()
    begin, bytes_before, position = time.monotonic(), pages.image_bytes, start
    bar = progress_bar("", len(order), "images", initial=start, enabled=progress, delay=0, log_interval=30)
    with closing(_encode(encoder, chunks, num_workers)) as encoded, bar:
        for chunk in encoded:
            for outcome in chunk:
                if outcome.image is not None:
                    if not pages.fits(outcome.image.data.nbytes):
                        _end_page(partial, position, page_tally, encoder.on_bad_image)
                        tally.extend(page_tally)
                        page_tally = Tally()
                    pages.append(outcome.label, outcome.image)
                page_tally.add(source.name(int(order[position])), outcome)
                position += 1
            megabytes_per_second = (pages.image_bytes - bytes_before) / 1e6 / (time.monotonic() - begin)
            bar.set_postfix_str(f"{megabytes_per_second:.0f} MB/s", refresh=False)
            bar.update(len(chunk))
    if pages.num_samples == 0:
        name, reason = page_tally.skipped[0]
        raise RebarError(
            f"{partial.path}: no image can be decoded; {name}: {reason}. Check the source.", code="write-no-images"
        )
    if start < len(order):
        _end_page(partial, position, page_tally, encoder.on_bad_image)
        tally.extend(page_tally)


def _encode(encoder: Encoder, chunks: list[tuple[int, int]], num_workers: int) -> Generator[list[Outcome], None, None]:
    if chunks:
        yield from map_in_processes(encoder, chunks, num_workers=min(num_workers, len(chunks)))


def _end_page(partial: PartialFile, position: int, page_tally: Tally, on_bad_image: OnBadImage) -> None:
    partial.record(partial.pages.write_page(), position, {"tally": asdict(page_tally), "on_bad_image": on_bad_image})


def _finish(partial: PartialFile, encoder: Encoder, num_bytes: int, checksums: Checksums, tally: Tally) -> None:
    """Write report and sidecar, then rename the .beton file, so that it never exists without its sidecar."""
    policy = encoder.policy
    sidecar = Sidecar(
        num_samples=partial.pages.num_samples,
        bytes=num_bytes,
        class_names=tuple(map(escape_undecodable, encoder.source.class_names)),
        images={key: value for key, value in asdict(policy).items() if key != "seed"},
        seed=policy.seed,
        checksums=checksums,
    )
    with atomic_write(report_path(partial.path), sidecar_path(partial.path)) as (report_file, sidecar_file):
        report_file.write(tally.to_json(omitted_by(encoder.source)).encode())
        sidecar_file.write(sidecar.to_json().encode())
    partial.finish()
    sync_folder(partial.path.parent)


def _add_resume_hint(error: RebarError, partial: PartialFile) -> RebarError:
    num_pages = len(partial.pages.page_checksums)
    if not num_pages:
        return error
    megabytes = num_pages * partial.pages.page_size / 1e6
    return RebarError(
        f"{error} The {megabytes:,.0f} MB written so far are kept: the same command resumes.", code=error.code
    )
