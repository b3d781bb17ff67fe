"""Build and time train_imagenet.py's step on one uint8 batch that stays on the device."""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_proof.job import Job, percentile

import train_imagenet  # isort: skip  # found through job.py
from training import PEAK_TFLOPS  # benchmarks/training.py
from training_loops import NUM_CLASSES
from training_loops import Job as LoopJob
from training_loops.rebar import SyntheticLoader

from rebar.config import parse_config
from rebar.loading import Batch
from rebar.models.build import build_model
from rebar.reporting.run_folder import RunFolder
from rebar.training.build import build_state
from rebar.training.config import TrainConfig
from rebar.training.distributed import World
from rebar.training.run import Run

LEARNING_RATE = 1e-3


class Stepper:
    """A run that trains one step per call."""

    def __init__(self, run: Run, batch: Batch) -> None:
        self.run = run
        self.batch = batch
        self._losses = self.train_on(itertools.repeat(batch))

    def train_on(self, batches: Iterable[Batch]) -> Iterator[torch.Tensor]:
        """Train on batches, one step per loss that is requested."""
        return train_imagenet.train_steps(self.run, batches, lambda step: LEARNING_RATE)

    def __call__(self, number: int) -> None:
        next(self._losses)


def build_stepper(
    job: Job,
    *options: str,
    resolution: int,
    batch_size: int,
    precision: str = "bf16",
    blurpool: bool = True,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> Stepper:
    """Build ResNet-50 (ResNet-18 in a rehearsal) like train_imagenet.py."""
    args = [
        f"--model.arch={'resnet18' if job.rehearse else 'resnet50'}",
        f"--model.num_classes={NUM_CLASSES}",
        f"--training.batch_size={batch_size}",
        f"--training.precision={'32' if job.rehearse else precision}",
        f"--training.use_blurpool={blurpool}",
        "--training.epochs=1000",
    ]
    config = parse_config(TrainConfig, [*args, *options], description="benchmark")
    world = World(rank=0, size=1, device=job.device)
    loop = LoopJob("resnet50", resolution, batch_size, 100, precision, job.device)
    torch.manual_seed(0)
    loader: Any = SyntheticLoader(loop)
    state = build_state(config, loader, world)
    run = Run(config, world, RunFolder(job.work / "unused"), state, wrap(state.model), loader, loader)
    draw = torch.Generator().manual_seed(0)
    shape = (batch_size, resolution, resolution, 3)
    images = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    labels = torch.randint(0, NUM_CLASSES, (batch_size,), generator=draw)
    return Stepper(run, Batch(images.to(job.device), labels.to(job.device)))


@functools.cache
def flops_per_image(resolution: int, arch: str) -> int:
    """Return the FLOPs of a forward and backward pass per image; a multiply-add counts as two."""
    with torch.device("meta"):
        model = build_model(arch, num_classes=NUM_CLASSES)
        images = torch.zeros(2, 3, resolution, resolution)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return int(counter.get_total_flops()) // 2


def synchronize(job: Job) -> None:
    if job.device.type == "cuda":
        torch.cuda.synchronize()


def time_steps(
    job: Job, step: Callable[[int], None], *, batch_size: int, resolution: int, seconds: float
) -> dict[str, float]:
    """Warm up, then train for about ``seconds``. Return images/s, and the median and p99 step time in ms."""
    on_gpu = job.device.type == "cuda"
    began = time.perf_counter()
    step(0)
    synchronize(job)
    first = time.perf_counter() - began
    warmup = 1 if job.rehearse else 5
    for number in range(warmup):
        step(number)
    synchronize(job)
    began = time.perf_counter()
    for number in range(2):
        step(number)
    synchronize(job)
    count = max(2 if job.rehearse else 10, round(2 * seconds / (time.perf_counter() - began)))
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
    began = time.perf_counter()
    marks = [began]
    for number in range(count):
        step(number)
        if on_gpu:
            events[number + 1].record()
        else:
            marks.append(time.perf_counter())
    synchronize(job)
    total = time.perf_counter() - began
    if on_gpu:
        times = [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
    else:
        times = [1000 * (b - a) for a, b in itertools.pairwise(marks)]
    speed = count * batch_size / total
    result = {
        "images_per_second": speed,
        "ms_per_step": statistics.median(times),
        "ms_p99": percentile(times, 0.99),
        "steps": count,
        "first_step_seconds": first,
    }
    peak = peak_tflops()
    tflops = speed * flops_per_image(resolution, "resnet18" if job.rehearse else "resnet50") / 1e12
    result["tflops"] = tflops
    if peak and on_gpu:
        result["share_of_peak"] = tflops / peak
        result["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return result


def peak_tflops() -> float | None:
    """Return the data sheet's dense half-precision peak of this GPU, or None."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
