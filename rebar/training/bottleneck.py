"""Measure the stages that an image passes through, each on its own, and report which one limits the speed."""

import copy
import itertools
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rebar.cli import count
from rebar.loading import Batch, Loader
from rebar.loading.order import OrderOption, threads_per_process
from rebar.reporting.console import format_gb, format_rate, images_per_second
from rebar.storage.cold_read import ColdRead, read_cold
from rebar.storage.page_cache import Regions, available_memory, fits_in_page_cache
from rebar.training.distributed import World, gather_from_all, wait_for_all
from rebar.training.run import Run, TrainSteps
from rebar.training.speed_advice import Situation, Stage, advise

NAMES: dict[Stage, str] = {
    "disk": "the disk",
    "decoding": "decoding",
    "copy": "the copy to the GPU",
    "step": "the training step",
}
_SECONDS = 0.5
"""Approximate duration of the measurement of a stage."""
_BATCHES = 4
"""The batches of each rank that are decoded again and again, from the page cache."""
_COPIES = 20


@dataclass(frozen=True)
class Speeds:
    """Images/s of each stage, and of all together, over all ranks. Equal on all ranks.

    ``disk`` is a cold read in the order in which the loader reads, ``in_file_order`` a cold read of the first samples.
    """

    disk: ColdRead | None
    """None: the file system cannot read from the disk without the page cache."""
    in_file_order: ColdRead | None
    decoding: float
    copy: float | None
    """None: no GPU."""
    step: float
    together: float
    fits: bool
    """Whether the data fits in the page cache of every node, so that only the first epoch reads the disk."""

    def compared(self, *, epochs: int) -> dict[Stage, float]:
        """Return the stages that every epoch, or the only one, passes through, slowest first."""
        stages: dict[Stage, float] = {"decoding": self.decoding, "step": self.step}
        if self.copy is not None:
            stages["copy"] = self.copy
        if self.disk is not None and (epochs == 1 or not self.fits):
            stages["disk"] = self.disk.samples_per_second
        return dict(sorted(stages.items(), key=lambda item: item[1]))


def main_resolution(resolutions: Sequence[int]) -> int:
    """Return the resolution of most epochs, the largest if there are several."""
    counts = Counter(resolutions)
    return max(counts, key=lambda resolution: (counts[resolution], resolution))


def measure(run: Run, train_steps: TrainSteps, resolution: int, seconds_per_step: float) -> Speeds:
    """Measure each stage at a resolution (pixels), on all ranks at once, since they share disks and cores.

    ``seconds_per_step`` is that of steps on images from the loader. Every rank must call it, and restore the state of
    the run afterwards. Takes about two seconds, or two steps if they are slower.
    """
    loader, world = run.train_loader, run.world
    fits = all(gather_from_all(_fits(run), world))
    in_file_order = _cold_read(loader, _batches_in_file_order(loader), world)
    in_order = in_file_order
    if not fits or loader.order is OrderOption.QUASI_RANDOM:
        in_order = _cold_read(loader, loader.batch_indices(run.state.epoch), world)
    batches = _cached_batches(loader, resolution, world)
    wait_for_all(world)
    batch, decoding = _decoding_speed(batches, skipped=loader.batches_ahead + 1)
    batches.close()  # ends the decoding threads
    step_seconds = max(gather_from_all(seconds_per_step, world))
    steps = min(max(round(_SECONDS / step_seconds), 1), 20)
    return Speeds(
        disk=in_order,
        in_file_order=in_file_order,
        decoding=_of_all_ranks(decoding, world),
        copy=_of_all_ranks(_copy_speed(batch, world), world) if world.device.type == "cuda" else None,
        step=_of_all_ranks(_step_speed(run, train_steps, batch, steps), world),
        together=loader.global_batch / step_seconds,
        fits=fits,
    )


def _fits(run: Run) -> bool:
    nbytes, available = _data_bytes(run.train_loader), available_memory()
    return fits_in_page_cache(nbytes, available) or (run.config.data.in_memory == "true" and nbytes <= available)


def _of_all_ranks(speed: float, world: World) -> float:
    """Return the speed of all ranks together. Steps are synchronized, so the slowest rank determines it."""
    return world.size * min(gather_from_all(speed, world))


def _cold_read(loader: Loader, batches: Sequence[np.ndarray], world: World) -> ColdRead | None:
    wait_for_all(world)
    regions = (Regions(*loader.beton.regions(batch)) for batch in batches)
    reads = gather_from_all(read_cold(loader.beton.files, regions, seconds=_SECONDS), world)
    if None in reads:
        return None
    slowest = min(reads, key=lambda read: read.samples_per_second)
    return ColdRead(world.size * slowest.bytes_per_second, world.size * slowest.samples_per_second)


def _batches_in_file_order(loader: Loader) -> list[np.ndarray]:
    """Return all samples, from a different position on each rank."""
    samples = np.roll(np.sort(loader.indices), -(len(loader.indices) * loader.rank // loader.world_size))
    return [samples[start : start + loader.batch_size] for start in range(0, len(samples), loader.batch_size)]


def _cached_batches(loader: Loader, resolution: int, world: World) -> Generator[Batch, None, None]:
    """Yield batches of few samples without end. The trial steps have read these samples into the page cache."""
    first = loader.batch_indices(0)[: _BATCHES * loader.copies]
    samples = np.unique(np.concatenate(gather_from_all(np.concatenate(first), world)))
    repeated = copy.deepcopy(loader)
    repeated.indices = samples if len(samples) >= loader.global_batch else loader.indices
    for epoch in itertools.count():
        yield from repeated.epoch(epoch, resolution)


def _decoding_speed(batches: Iterator[Batch], *, skipped: int) -> tuple[Batch, float]:
    """Return a batch, and the images/s of the loader without a consumer. The first batches were prefetched."""
    for _ in range(skipped):
        batch = next(batches)
    started, images = time.perf_counter(), 0
    while images == 0 or time.perf_counter() - started < _SECONDS:
        batch = next(batches)
        images += len(batch.labels)
    return batch, images / (time.perf_counter() - started)


def _copy_speed(batch: Batch, world: World) -> float:
    for repetitions in (2, _COPIES):  # the first ones allocate
        torch.cuda.synchronize(world.device)
        started = time.perf_counter()
        for _ in range(repetitions):
            batch.images.to(world.device, non_blocking=True)
            batch.labels.to(world.device, non_blocking=True)
        torch.cuda.synchronize(world.device)
    return _COPIES * len(batch.labels) / (time.perf_counter() - started)


def _step_speed(run: Run, train_steps: TrainSteps, batch: Batch, steps: int) -> float:
    """Return the images/s of the training step on a batch that stays on the device."""
    on_device = Batch(*(tensor.to(run.world.device) for tensor in batch))
    losses = train_steps(run, itertools.repeat(on_device, 1 + steps), lambda step: 0.0)
    next(losses).item()
    started = time.perf_counter()
    *_, last = losses
    last.item()  # waits for the device
    return steps * len(batch.labels) / (time.perf_counter() - started)


def report(speeds: Speeds, run: Run, resolution: int) -> dict[str, str]:
    """Describe the stages, the one that limits the speed, and what helps most, as text by name."""
    (slowest, limit), (second, next_speed), *_ = speeds.compared(epochs=run.config.training.epochs).items()
    situation = _situation(run, speeds, resolution, faster=next_speed / limit)
    limited_by = f"{NAMES[slowest]}; {NAMES[second]} is {format_rate(next_speed / limit)} times as fast"
    if slowest != "disk" and speeds.disk is not None and speeds.disk.samples_per_second < limit:
        limited_by += "; in the first epoch, the disk limits"
    cores = f"{count(situation.workers, 'thread')} per rank on {count(situation.cores, 'core')}"
    return {
        "disk": _describe_disk(speeds, run),
        "decoding": f"{images_per_second(speeds.decoding)} with {cores}, from the page cache",
        "copy": "not measured: no GPU" if speeds.copy is None else f"{images_per_second(speeds.copy)} to the GPU",
        "step": f"{images_per_second(speeds.step)} on a batch that stays on the device",
        "together": images_per_second(speeds.together),
        "limited by": limited_by,
        "what helps most": advise(slowest, situation),
    }


def _describe_disk(speeds: Speeds, run: Run) -> str:
    if speeds.disk is None:
        return (
            f"not measured: {run.train_loader.beton.files[0].parent} is in memory, or cannot be read without the page "
            "cache"
        )
    size = format_gb(_data_bytes(run.train_loader) / 1e9)
    rate = f"{images_per_second(speeds.disk.samples_per_second)}, cold, {speeds.disk.bytes_per_second / 1e6:,.0f} MB/s"
    if speeds.fits:
        return f"{rate}; in the first epoch only: {size} fit in memory"
    return f"{rate}; in every epoch: {size} do not fit in memory"


def _data_bytes(loader: Loader) -> int:
    return int(loader.beton.sizes[loader.indices].sum())


def _situation(run: Run, speeds: Speeds, resolution: int, *, faster: float) -> Situation:
    loader, device = run.train_loader, run.world.device
    sides = np.maximum(loader.beton.heights, loader.beton.widths)[loader.indices]
    ratio, gpu_memory, major = 1.0, None, 9
    if speeds.disk and speeds.in_file_order:
        ratio = speeds.in_file_order.samples_per_second / speeds.disk.samples_per_second
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu_memory, major = torch.cuda.max_memory_allocated(device) / properties.total_memory, properties.major
    return Situation(
        config=run.config,
        precision=run.state.precision,
        resolution=resolution,
        faster=faster,
        workers=loader.num_workers,
        cores=threads_per_process(0),
        torch_threads=torch.get_num_threads(),
        long_side=float(sides.mean()),
        fits=speeds.fits,
        memory_needed=_data_bytes(loader) / max(available_memory(), 1),
        in_file_order=ratio,
        gpu_memory=gpu_memory,
        supports_bf16=major >= 8,
    )
