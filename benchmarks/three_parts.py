"""Who waits for whom: the loader alone, the training step alone, and both together.

    python benchmarks/three_parts.py --train-dataset train.beton --arch resnet50 --resolution 224 --json OUT

The loader alone hands out batches that nobody looks at; the step alone trains on one batch that stays on
the device; together they are the inner loop of train_imagenet.py. Together they can reach the slower of the
two alone: ``overlap`` is the share of that which they do reach.
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain, count, islice
from pathlib import Path

import torch
from torch import nn

from rebar.loading import Batch, Loader, Normalizer, RandomResizedCrop, WaitTimer
from rebar.training.distributed import join_world
from rebar.training.model import build_model, to_device
from rebar.training.optimizer import OptimizerConfig, build_optimizer, parameter_groups
from rebar.training.precision import Precision, autocast, gradient_scaler, resolve_precision

Step = Callable[[torch.Tensor, torch.Tensor], None]


def make_step(arch: str, num_classes: int, precision: Precision, device: torch.device) -> Step:
    """A training step as in train_imagenet.py, with BlurPool and label smoothing."""
    model = to_device(build_model(arch, num_classes=num_classes, use_blurpool=True), device)
    optimizer = build_optimizer("sgd", parameter_groups(model, 1e-4), OptimizerConfig(), momentum=0.9, peak_lr=0.1)
    scaler = gradient_scaler(precision, device)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, device):
            loss = criterion(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def endless(loader: Loader, resolution: int) -> Iterator[Batch]:
    """Epoch after epoch."""
    return chain.from_iterable(loader.epoch(epoch, resolution) for epoch in count())


def pictures_per_second(work: Callable[[], None], pictures: int, device: torch.device) -> float:
    """The rate of one run of ``work``, which handles so many pictures."""
    wait_for(device)
    began = time.perf_counter()
    work()
    wait_for(device)
    return pictures / (time.perf_counter() - began)


def measure(arguments: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """The three rates, each the median over the repetitions, and how much the loop waited."""
    precision = resolve_precision(arguments.precision, device)
    loader = Loader(
        arguments.train_dataset,
        arguments.batch_size,
        num_workers=arguments.num_workers,
        order="random",
        cropper=RandomResizedCrop(),
        resolution=arguments.resolution,
        pin_memory=device.type == "cuda",
    )
    normalizer = Normalizer(device)
    step = make_step(arguments.arch, loader.beton.num_classes, precision, device)
    pictures = arguments.steps * arguments.batch_size
    batches = endless(loader, arguments.resolution)
    images, labels = next(iter(normalizer.each(islice(batches, 1))))
    step(images, labels)  # allocates, tunes and compiles whatever is done once
    waited: list[float] = []

    def use_up_what_lies_ready() -> None:
        for _ in islice(batches, loader.batches_ahead + 1):
            pass

    def loader_alone() -> None:
        for _ in islice(batches, arguments.steps):
            pass

    def step_alone() -> None:
        for _ in range(arguments.steps):
            step(images, labels)

    def both() -> None:
        timer = WaitTimer(islice(batches, arguments.steps))
        for some_images, some_labels in normalizer.each(timer):
            step(some_images, some_labels)
        waited.append(timer.seconds)

    rates: dict[str, list[float]] = {"loader": [], "step": [], "both": []}
    for _ in range(arguments.repetitions):
        for name, work in (("loader", loader_alone), ("step", step_alone), ("both", both)):
            use_up_what_lies_ready()
            rates[name].append(pictures_per_second(work, pictures, device))
    medians = {f"{name}_images_per_second": statistics.median(values) for name, values in rates.items()}
    ceiling = min(medians["loader_images_per_second"], medians["step_images_per_second"])
    together = medians["both_images_per_second"]
    waiting = statistics.median(waited) * together / pictures
    return {**medians, "overlap": together / ceiling, "data_wait_fraction": waiting}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-dataset", type=Path, required=True)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--resolution", type=int, default=224, help="pixels")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-workers", type=int, default=0, help="0: every usable core")
    parser.add_argument("--precision", default="auto", choices=("auto", "32", "fp16", "bf16"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    with join_world() as world:
        rates = measure(arguments, world.device)
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
    main()
