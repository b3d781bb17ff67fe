"""Which of the two ways to make batches a loader's arguments ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rebar.beton.reader import BetonFile, Files, find_betons, open_betons
from rebar.errors import RebarError
from rebar.loading.batch_source import BatchSource, PlainPlan, Plan, field_types, image_and_label
from rebar.loading.crops import Cropper
from rebar.loading.decode import OnError
from rebar.loading.ffcv.pipelines import recognize
from rebar.loading.image_batches import ImageSource

Subset: TypeAlias = "Sequence[int] | NDArray[np.integer] | None"


@dataclass(frozen=True)
class SourceOptions:
    """What a source needs besides the file and what to make of it."""

    batch_size: int
    num_workers: int
    keep_slots: int
    on_error: OnError
    pin_memory: bool
    recompile: bool


def open_source(
    files: Files,
    cropper: Cropper | None,
    pipelines: Mapping[str, Any],
    custom_fields: Mapping[str, Any],
    indices: Subset,
    options: SourceOptions,
) -> BatchSource:
    """Our own path for a cropper or pipelines we know, FFCV's graph for any other."""
    if cropper is not None:
        if pipelines:
            raise RebarError("give a cropper or pipelines, not both: a cropper's images come as bytes")
        return _open_images(files, PlainPlan(cropper), indices, options)
    paths = find_betons(files)
    types = field_types(paths[0])
    plan = recognize(pipelines, types) if not custom_fields else None
    if plan is not None:
        return _open_images(paths, plan, indices, options)
    if len(paths) > 1:
        raise RebarError(f"FFCV runs these pipelines, and takes one file, not {len(paths)}")
    return _open_graph(paths[0], types, pipelines, custom_fields, indices, options)


def _open_images(files: Files, plan: Plan, indices: Subset, options: SourceOptions) -> BatchSource:
    beton = open_betons(files)
    return ImageSource(
        beton,
        plan,
        indices=_subset(indices, beton.num_samples),
        on_error=options.on_error,
        num_workers=options.num_workers,
        keep_slots=options.keep_slots,
        pin_memory=options.pin_memory,
    )


def _open_graph(
    path: Path,
    types: Mapping[str, int],
    pipelines: Mapping[str, Any],
    custom_fields: Mapping[str, Any],
    indices: Subset,
    options: SourceOptions,
) -> BatchSource:
    if options.on_error != "raise":
        raise RebarError("on_error: FFCV runs these pipelines, and does not tell which samples are corrupt")
    if None not in image_and_label(types) and not custom_fields:
        BetonFile.open(path)  # checks far more than FFCV's own reader
    from rebar.loading.ffcv.graph import FfcvFile, FfcvGraph

    file = FfcvFile.open(path, custom_fields)
    return FfcvGraph(
        file,
        pipelines,
        indices=_subset(indices, file.num_samples),
        batch_size=options.batch_size,
        keep_slots=options.keep_slots + options.num_workers,  # every thread works on a batch
        recompile=options.recompile,
    )


def _subset(indices: Subset, num_samples: int) -> NDArray[np.int64]:
    if indices is None:
        return np.arange(num_samples)
    subset = np.asarray(indices)
    if subset.dtype == bool or not (np.issubdtype(subset.dtype, np.integer) and subset.ndim == 1 and len(subset)):
        raise RebarError("indices: give the numbers of at least one sample, one after the other")
    if int(subset.min()) < 0 or int(subset.max()) >= num_samples:
        raise RebarError(
            f"indices: {int(subset.min())} to {int(subset.max())}, but the samples are 0 to {num_samples - 1}"
        )
    return subset.astype(np.int64)
