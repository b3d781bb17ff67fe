"""The training step fed by the Loader on 1, 2, 4, ... cores, compared with the step on a batch on the GPU."""

import functools
import gc
import itertools
import os
import time
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_proof.job import Job, percentile
from benchmarks.gpu_proof.training_step import Stepper, build_stepper, synchronize, time_steps
from rebar.loading import Loader
from rebar.loading.imagenet import build_train_loader
from rebar.loading.options import DataConfig
from rebar.training.metrics import TrainMeter


def run(job: Job) -> None:
    """Measure at 160 and 224 px for each number of cores, then nvJPEG on the same images."""
    torch.backends.cudnn.benchmark = True
    beton = job.wait_for("train.beton")
    cores = sorted(os.sched_getaffinity(0))
    numbers = [n for n in (16, 8, 4, 2, 1) if n < len(cores)] or [1]
    if not job.rehearse:
        numbers = [len(cores), *numbers]
    job.note(
        settings="ResNet-50, bf16, BlurPool, eager; random crops of photographs of 500 px, generated, in a .beton in "
        "memory; the step's own thread and the driver's are confined to the same cores"
    )
    sizes = ((32, 4),) if job.rehearse else ((224, 256), (160, 256))
    for resolution, batch_size in sizes:
        job.attempt(
            functools.partial(one_resolution, job, beton, resolution, batch_size, cores, numbers), resolution=resolution
        )
        gc.collect()
    job.attempt(lambda: nvjpeg(job), case="nvJPEG")


def one_resolution(
    job: Job, beton: Path, resolution: int, batch_size: int, cores: list[int], numbers: list[int]
) -> None:
    """Add a row for each number of cores."""
    stepper = build_stepper(job, resolution=resolution, batch_size=batch_size)
    seconds = 0.2 if job.rehearse else 1.5
    synthetic = time_steps(job, stepper, batch_size=batch_size, resolution=resolution, seconds=seconds)
    for number in numbers:
        if job.seconds_left < 8:
            job.skip(f"{resolution} px, {number} cores")
            continue
        job.attempt(
            functools.partial(measure, job, stepper, beton, synthetic, resolution, batch_size, cores[:number]),
            cores=number,
            resolution=resolution,
        )
    restrict(cores)


def restrict(cores: list[int]) -> None:
    """Restrict all threads of this process to these cores, like taskset -a. New threads inherit the restriction."""
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:
            continue


def measure(
    job: Job,
    stepper: Stepper,
    beton: Path,
    synthetic: dict[str, float],
    resolution: int,
    batch_size: int,
    cores: list[int],
) -> None:
    """Add a row: images/s of the fed step and of the loader alone on these cores."""
    restrict(cores)
    data = DataConfig(train_dataset=str(beton), num_workers=len(cores))
    on_gpu = job.device.type == "cuda"
    loader = build_train_loader(data, batch_size=batch_size, seed=0, distributed=False, pin_memory=on_gpu)
    budget = 0.3 if job.rehearse else 3.0
    meter = TrainMeter(job.device)
    batches = chain.from_iterable(loader.epoch(epoch, resolution) for epoch in count())
    events: list[Any] = []
    fed = stepper.train_on(meter.timed(batches))
    for _ in range(loader.batches_ahead + 3):  # exclude the batches that are prefetched at the start
        next(fed)
    synchronize(job)
    waited, cpu, began, steps = meter.wait_seconds, time.process_time(), time.perf_counter(), 0
    while time.perf_counter() - began < budget or steps < 3:
        next(fed)
        if on_gpu:
            events.append(torch.cuda.Event(enable_timing=True))
            events[-1].record()
            if steps > 2:
                events[-3].synchronize()  # keep the host at most three steps ahead, so that its clock reflects the GPU
        else:
            events.append(time.perf_counter())
        steps += 1
    synchronize(job)
    seconds = time.perf_counter() - began
    cpu = time.process_time() - cpu
    wait = (meter.wait_seconds - waited) / seconds
    pairs = list(itertools.pairwise(events))
    times = [a.elapsed_time(b) if on_gpu else 1000 * (b - a) for a, b in pairs]
    del fed, batches  # ends the loader's threads
    rate = steps * batch_size / seconds
    alone = loader_alone(loader, resolution, batch_size, 0.2 if job.rehearse else 1.2)
    job.add(
        resolution=resolution,
        cores=len(cores),
        fed_images_per_second=rate,
        synthetic_images_per_second=synthetic["images_per_second"],
        ratio=rate / synthetic["images_per_second"],
        data_wait_fraction=wait,
        cpu_share_of_cores=cpu / seconds / len(cores),
        cpu_cores_busy=cpu / seconds,
        cpu_seconds_per_1000_images=1000 * cpu / (steps * batch_size),
        batch_ms_p50=percentile(times, 0.5),
        batch_ms_p99=percentile(times, 0.99),
        loader_alone_images_per_second=alone,
        steps=steps,
    )


def loader_alone(loader: Loader, resolution: int, batch_size: int, budget: float) -> float:
    """Return the images/s of the loader without a consumer."""
    batches = chain.from_iterable(loader.epoch(100 + epoch, resolution) for epoch in count())
    for _ in range(loader.batches_ahead + 2):
        next(batches)
    began, taken = time.perf_counter(), 0
    while time.perf_counter() - began < budget or taken < 2:
        next(batches)
        taken += 1
    return taken * batch_size / (time.perf_counter() - began)


def nvjpeg(job: Job) -> None:
    """Decode the same JPEGs on the GPU with torchvision, then crop and resize there."""
    if job.rehearse:
        job.add(case="nvJPEG", note="needs a GPU")
        return
    import torch.nn.functional as F
    from torchvision.io import decode_jpeg

    paths = sorted((job.work / "photographs" / "train").rglob("*.jpg"))[:256]
    contents = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in paths]
    for resolution in (224, 160):

        def batch(resolution: int = resolution) -> torch.Tensor:
            images = decode_jpeg(contents, device="cuda")
            crops = []
            for image in images:  # a square of 60 % of the shorter side, the median size of a random crop
                side = int(0.6 * min(image.shape[1:]))
                crop = image[None, :, 20 : 20 + side, 20 : 20 + side].float()
                crops.append(F.interpolate(crop, (resolution, resolution), mode="bilinear", antialias=True))
            return torch.cat(crops)

        for _ in range(2):
            batch()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(4):
            batch()
        torch.cuda.synchronize()
        rate = 4 * len(paths) / (time.perf_counter() - began)
        job.add(
            case="nvJPEG: decode, crop, resize, nothing else on the GPU", resolution=resolution, images_per_second=rate
        )
