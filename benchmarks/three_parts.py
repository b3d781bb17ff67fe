"""Measure the loader alone, the training step alone, and both together, to find the bottleneck.

    python benchmarks/three_parts.py --train-dataset train.beton --arch resnet50 --resolution 224 --json OUT

The step is train_imagenet.py's own; alone, it trains on one batch that is already on the device. Together, the two can
at best be as fast as the slower one: ``overlap`` is the ratio of the measured speed to that limit.
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice, repeat
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loader import check_report

import train_imagenet  # a script in the repository's root
from rebar.cli import run_command
from rebar.config import parse_config
from rebar.loading import Batch, Loader
from rebar.loading.imagenet import build_train_loader
from rebar.reporting.run_folder import RunFolder
from rebar.training.build import build_state
from rebar.training.config import TrainConfig
from rebar.training.distributed import World, join_world
from rebar.training.metrics import TrainMeter
from rebar.training.run import Run

LEARNING_RATE = 1e-3


def configuration(arguments: argparse.Namespace) -> TrainConfig:
    """Return the configuration of a run with BlurPool and label smoothing."""
    options = {
        "model.arch": arguments.arch,
        "data.train_dataset": arguments.train_dataset,
        "data.num_workers": arguments.num_workers,
        "training.batch_size": arguments.batch_size,
        "training.precision": arguments.precision,
        "training.use_blurpool": True,
    }
    return parse_config(TrainConfig, [f"--{name}={value}" for name, value in options.items()], description="benchmark")


def wait_for(device: torch.device) -> None:
    """Block until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def endless(loader: Loader, resolution: int) -> Iterator[Batch]:
    """Yield the batches of one epoch after another."""
    return chain.from_iterable(loader.epoch(epoch, resolution) for epoch in count())


def images_per_second(work: Callable[[], None], num_images: int, device: torch.device) -> float:
    """Return the speed of ``work``, which processes ``num_images`` images."""
    wait_for(device)
    started = time.perf_counter()
    work()
    wait_for(device)
    return num_images / (time.perf_counter() - started)


def measure(arguments: argparse.Namespace, world: World) -> dict[str, float]:
    """Return the three speeds, as medians over the repetitions, and the fraction of time spent waiting for data."""
    config, device = configuration(arguments), world.device
    loader = build_train_loader(
        config.data, batch_size=arguments.batch_size, seed=0, distributed=False, pin_memory=device.type == "cuda"
    )
    state = build_state(config, loader, world)
    run = Run(config, world, RunFolder(Path("unused")), state, state.model, loader, loader)
    num_images = arguments.steps * arguments.batch_size
    batches = endless(loader, arguments.resolution)
    first = next(batches)
    device_batch = Batch(first.images.to(device), first.labels.to(device))
    waited: list[float] = []

    def train_on(some_batches: Iterable[Batch]) -> None:
        for _ in train_imagenet.train_steps(run, some_batches, lambda step: LEARNING_RATE):
            pass

    def skip_prefetched_batches() -> None:
        for _ in islice(batches, loader.batches_ahead + 1):
            pass

    def loader_alone() -> None:
        for _ in islice(batches, arguments.steps):
            pass

    def step_alone() -> None:
        train_on(repeat(device_batch, arguments.steps))

    def both() -> None:
        meter = TrainMeter(device)
        train_on(meter.timed(islice(batches, arguments.steps)))
        waited.append(meter.wait_seconds)

    train_on([device_batch])  # allocates and compiles
    rates: dict[str, list[float]] = {"loader": [], "step": [], "both": []}
    for _ in range(arguments.repetitions):
        for name, work in (("loader", loader_alone), ("step", step_alone), ("both", both)):
            skip_prefetched_batches()
            rates[name].append(images_per_second(work, num_images, device))
    medians = {f"{name}_images_per_second": statistics.median(values) for name, values in rates.items()}
    ceiling = min(medians["loader_images_per_second"], medians["step_images_per_second"])
    together = medians["both_images_per_second"]
    waiting = statistics.median(waited) * together / num_images
    return {**medians, "overlap": together / ceiling, "data_wait_fraction": waiting}


def main() -> None:
    """Measure, print the result, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-dataset", type=Path, required=True)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--resolution", type=int, default=224, help="pixels")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-workers", type=int, default=0, help="0: all usable cores")
    parser.add_argument("--precision", default="auto", choices=("auto", "32", "fp16", "bf16"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    check_report(arguments.json)
    torch.backends.cudnn.benchmark = True
    with join_world() as world:
        rates = measure(arguments, world)
        device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
    for name, value in rates.items():
        print(f"{name:30} {value:10,.2f}")
    if arguments.json:
        report = {
            "benchmark": "three_parts",
            "command": " ".join(["python", "benchmarks/three_parts.py", *sys.argv[1:]]),
            "date": datetime.date.today().isoformat(),
            "device": device,
            "torch": torch.__version__,
            "settings": {key: str(value) for key, value in vars(arguments).items()},
            **rates,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run_command(lambda _: main())
