"""Compare Rebar's training loop with torchvision's reference loop and ffcv-imagenet's on the same images and model.

    python benchmarks/training.py --json training.json                                  # a CPU, in two minutes
    python benchmarks/training.py --arch resnet50 --resolution 160 224 --precision bf16 --json OUT          # a GPU
    python benchmarks/training.py --arch resnet50 --resolution 224 --precision bf16 --train-dataset train.beton

Images are random bytes in main memory, so that no loop waits for data. The loops take turns, each training an epoch of
``--steps`` steps, for several repetitions; the modules in training_loops/ describe their steps. ``rebar`` is
train_imagenet.py's own loop. Speeds are medians over the repetitions; ratios are computed within a repetition. Images
per second of the host's CPU time are reported too, because other processes affect them less; for the same reason, the
CPU uses one thread. ``--train-dataset`` adds ``rebar_from_file``, the same loop with the real loader: its
``data_wait_fraction`` is the cost of reading.

``share_of_peak``: FLOPs of the model's forward and backward pass per image, counted by PyTorch, times images/s, divided
by the vendor's dense half-precision peak.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loader import check_report, describe_machine
from torch.utils.flop_counter import FlopCounterMode
from training_loops import NAMES, NUM_CLASSES, Epoch, Job, random_batches

from rebar.cli import run_command
from rebar.models.build import build_model
from rebar.training.distributed import join_world
from rebar.training.execution import resolve_precision
from rebar.training.options import Precision

BASELINES = {"torchvision": "torchvision_reference", "ffcv_imagenet": "ffcv_imagenet"}
# TFLOP/s, dense, fp16 or bf16, from the vendor's data sheets; the first name contained in the GPU's name applies.
PEAK_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10G": 70,
    "A10": 125,
    "V100": 125,
    "T4": 65,
    "4090": 165,
}

Contestants = dict[str, Callable[[], Epoch]]


@dataclasses.dataclass(frozen=True)
class Run:
    """One epoch of one loop."""

    seconds: float
    processor_seconds: float
    """CPU time of the host, over all threads."""
    epoch: Epoch

    @property
    def images_per_second(self) -> float:
        return self.epoch.images / self.seconds

    @property
    def images_per_processor_second(self) -> float:
        return self.epoch.images / self.processor_seconds


def start(job: Job, names: list[str], train_dataset: str, stack: contextlib.ExitStack) -> Contestants:
    """Return the loops by name, with their models built; the stack closes them."""
    jobs = {name: (name, job) for name in names}
    if train_dataset:
        jobs["rebar_from_file"] = ("rebar", dataclasses.replace(job, train_dataset=train_dataset))
    contestants = {}
    for name, (module, loop_job) in jobs.items():
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        loop = importlib.import_module(f"training_loops.{module}")
        contestants[name] = stack.enter_context(loop.epochs(dataclasses.replace(loop_job, folder=folder)))
    return contestants


def run_once(one_epoch: Callable[[], Epoch], device: torch.device) -> Run:
    """Train an epoch, with the loop's output redirected to memory."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        wait_for(device)
        started, processor_started = time.perf_counter(), time.process_time()
        epoch = one_epoch()
        wait_for(device)
        return Run(time.perf_counter() - started, time.process_time() - processor_started, epoch)


def wait_for(device: torch.device) -> None:
    """Block until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(job: Job, arguments: argparse.Namespace) -> dict[str, list[Run]]:
    """Return the runs of each loop, the first of them a warm-up."""
    runs: dict[str, list[Run]] = {}
    with contextlib.ExitStack() as stack:
        contestants = start(job, arguments.loops.split(","), arguments.train_dataset, stack)
        for repetition in range(1 + arguments.repetitions):
            for name, one_epoch in contestants.items():
                run = run_once(one_epoch, job.device)
                runs.setdefault(name, []).append(run)
                count = f"{repetition}/{arguments.repetitions}" if repetition else "warm-up"
                print(f"{count}  {job.resolution} px, {name}: {run.images_per_second:,.1f} images/s", flush=True)
    return runs


def flops_per_image(arch: str, resolution: int) -> int:
    """Return the FLOPs of a forward and a backward pass; a multiply-add counts as two."""
    model = build_model(arch, num_classes=NUM_CLASSES)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, resolution, resolution)).sum().backward()
    return int(counter.get_total_flops()) // 2


def peak_tflops(device: torch.device, precision: Precision) -> float | None:
    """Return the vendor's dense half-precision peak of this GPU; None if it is not in the table."""
    if device.type != "cuda" or precision == "32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def summarize(job: Job, runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Return one row per loop."""
    flops, peak = flops_per_image(job.arch, job.resolution), peak_tflops(job.device, job.precision)
    rows = []
    for name, (first, *measured) in runs.items():
        speed = statistics.median(run.images_per_second for run in measured)
        ratios = {}
        for label, baseline in BASELINES.items():
            pairs = list(zip(measured, runs.get(baseline, [])[1:], strict=False))
            for prefix, rate in (("", "images_per_second"), ("processor_", "images_per_processor_second")):
                values = [getattr(ours, rate) / getattr(theirs, rate) for ours, theirs in pairs]
                ratios[f"{prefix}ratio_to_{label}"] = statistics.median(values) if values else None
        waits = [run.epoch.wait_seconds / run.seconds for run in measured if run.epoch.wait_seconds is not None]
        rows.append(
            {
                "loop": name,
                "resolution": job.resolution,
                "images_per_second": speed,
                "images_per_processor_second": statistics.median(run.images_per_processor_second for run in measured),
                **ratios,
                "tflops": speed * flops / 1e12,
                "share_of_peak": speed * flops / 1e12 / peak if peak else None,
                "data_wait_fraction": statistics.median(waits) if waits else None,
                "first_epoch_mean_loss": first.epoch.mean_loss,
                "epoch_seconds": [run.seconds for run in measured],
            }
        )
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows, the fastest first within each resolution."""
    heads = ["px", "loop", "img/s", "vs torchvision", "vs ffcv", "by CPU time", "", "TFLOP/s", "peak", "data wait"]
    formats = {
        "images_per_second": ",.1f",
        "tflops": ".3f",
        "share_of_peak": ".1%",
        "data_wait_fraction": ".1%",
    }
    names = ["images_per_second", *(f"{kind}ratio_to_{label}" for kind in ("", "processor_") for label in BASELINES)]
    names += ["tflops", "share_of_peak", "data_wait_fraction"]
    lines = [heads]
    for row in sorted(rows, key=lambda row: (row["resolution"], -row["images_per_second"])):
        cells = ["" if row[name] is None else format(row[name], formats.get(name, ".3f")) for name in names]
        lines.append([str(row["resolution"]), row["loop"], *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--resolution", type=int, nargs="+", default=[64], help="pixels, one or more")
    parser.add_argument("--batch-size", type=int, default=0, help="default: 256 on a GPU, 32 on a CPU")
    parser.add_argument("--steps", type=int, default=0, help="steps per epoch; default: 100 on a GPU, 4 on a CPU")
    parser.add_argument("--repetitions", type=int, default=5, help="measured epochs, after one warm-up epoch")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--precision", default="auto", choices=("auto", "32", "fp16", "bf16"))
    parser.add_argument("--loops", default=",".join(NAMES))
    parser.add_argument("--train-dataset", default="", help="a .beton file; adds the loop rebar_from_file")
    parser.add_argument("--json", type=Path, help="file for the rows, the machine and the versions")
    return parser.parse_args()


def main() -> None:
    """Measure, print the result, and write it as JSON."""
    arguments = parse_arguments()
    check_report(arguments.json)
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(arguments.threads)
    rows = []
    with join_world() as world:
        device, on_gpu = world.device, world.device.type == "cuda"
        batch_size = arguments.batch_size or (256 if on_gpu else 32)
        steps = arguments.steps or (100 if on_gpu else 4)
        precision = resolve_precision(arguments.precision, device)
        for resolution in arguments.resolution:
            batches = random_batches(batch_size, resolution, device)
            job = Job(arguments.arch, resolution, batch_size, steps, precision, device, batches=batches)
            rows += summarize(job, measure(job, arguments))
        device_name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
        peak = peak_tflops(device, precision)
    print_table(rows)
    if arguments.json:
        report = {
            "benchmark": "training",
            "command": " ".join(["python", "benchmarks/training.py", *sys.argv[1:]]),
            "date": datetime.date.today().isoformat(),
            "machine": describe_machine(),
            "device": device_name,
            "peak_tflops_by_vendor": peak,
            "settings": {
                "arch": arguments.arch,
                "batch_size": batch_size,
                "steps": steps,
                "precision": precision,
                "threads": arguments.threads,
            },
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run_command(lambda _: main())
