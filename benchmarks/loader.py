"""Measure the images/s of Rebar's Loader and of its peers, on the same JPEGs and the same machine.

    python benchmarks/loader.py --data photographs --json loader.json
    python benchmarks/loader.py --data photographs --peers rebar,ffcv --resolutions 224 --cores 1 --json OUT

``--data`` is a folder with one folder of images per class, such as photographs.py writes. The images are written once
as a beton, like write_dataset.py; peers that read files get its JPEGs. Each peer runs in its own
process, limited to the given cores. Repetitions of the peers are interleaved. A result is the median, over the
repetitions, of the median epoch without the first; ratios are taken within a repetition. A peer whose package is
missing is skipped and reported. To run a peer with another Python: ``--peers rebar,ffcv,dali=/path/to/python``.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from peers import NAMES, Job

from rebar.beton import BetonFile, ImagePolicy, write_beton
from rebar.cli import run_command
from rebar.errors import RebarError
from rebar.sources import ImageFolder
from rebar.storage.files import check_writable

REPOSITORY = Path(__file__).resolve().parent.parent
BASELINE = "ffcv"
PACKAGES = ("numpy", "numba", "torch", "torchvision", "ffcv", "opencv-python-headless", "simplejpeg", "webdataset")


@dataclass(frozen=True)
class Contestant:
    """A peer, and the Python interpreter that runs it."""

    name: str
    python: str


@dataclass(frozen=True)
class Measurement:
    """One run of one peer."""

    epoch_seconds: list[float]
    images: int
    first_batch_seconds: float
    batch_seconds_p50: float
    """Median time until a batch arrives, over the epochs without the first. The first batch of an epoch counts."""
    batch_seconds_p99: float
    """99th percentile of the same times."""
    cpu_seconds_per_1000_images: float
    """CPU time of the process and its children, user and system, over the same epochs."""
    peak_memory_mb: float
    """The peak memory of the process and its children, without mapped files."""

    @property
    def images_per_second(self) -> float:
        """The images/s of the median epoch, without the first."""
        later = self.epoch_seconds[1:] or self.epoch_seconds
        return self.images / statistics.median(later)

    @property
    def images_per_second_last_two(self) -> float:
        """The images/s of the mean of the last two epochs. Stock FFCV is slow in its second and third epoch."""
        return self.images / statistics.mean(self.epoch_seconds[-2:])


def prepare(data: Path, work: Path, count: int) -> tuple[Path, Path]:
    """Write the images as a beton, and its JPEGs as a folder of files, once per ``count``; return both paths."""
    beton_path, folder = work / f"images_{count}.beton", work / f"images_{count}"
    if not beton_path.exists():
        source = ImageFolder(data)
        order = np.argsort(np.random.Philox(key=0).random_raw(len(source)), kind="stable")[:count]
        write_beton(source, beton_path, policy=ImagePolicy(), order=order, num_workers=os.cpu_count() or 1)
    beton = BetonFile.open(beton_path)
    for index in range(beton.num_samples if not folder.exists() else 0):
        path = folder / f"{beton.labels[index]:05d}" / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(beton.image_bytes(index).tobytes())
    return beton_path, folder


def run_peer(contestant: Contestant, job: Job, numba_cache: Path) -> Measurement | str:
    """Run a peer in its own process; return its measurement, or the reason why there is none."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    if not Path(contestant.python).exists():
        return f"{contestant.python} does not exist"
    process = subprocess.Popen(
        [contestant.python, "benchmarks/run_peer.py", contestant.name, json.dumps(asdict(job))],
        cwd=REPOSITORY,
        env={**os.environ, **threads, "NUMBA_CACHE_DIR": str(numba_cache), "NUMBA_NUM_THREADS": str(job.cores)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = watch_memory(process)
    output, errors = process.communicate()
    if process.returncode != 0:
        return (errors.strip().splitlines() or ["no message"])[-1]
    return Measurement(peak_memory_mb=peak, **json.loads(output.splitlines()[-1]))


def watch_memory(process: "subprocess.Popen[str]") -> float:
    """Return the peak memory in MB of a process and its children until it ends, without mapped files."""
    peak = 0.0
    while process.poll() is None:
        try:
            root = psutil.Process(process.pid)
            peak = max(peak, sum(private_memory(member.pid) for member in [root, *root.children(recursive=True)]))
        except (psutil.Error, OSError):
            pass  # a process has just ended
        time.sleep(0.2)
    return peak


def private_memory(pid: int) -> float:
    """Return a process's proportional memory in MB, without mapped files (man 5 proc, smaps)."""
    fields = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(kilobytes) for name, kilobytes, *_ in fields if name in ("Pss_Anon:", "Pss_Shmem:")) / 1000


def idle_memory() -> float:
    """Return the memory in MB of a process that only imports torch."""
    return watch_memory(subprocess.Popen([sys.executable, "-c", "import torch, time; time.sleep(1)"], text=True))


def summarize(runs: dict[tuple[str, int, int], list[Measurement]]) -> list[dict[str, Any]]:
    """Return one row per peer, resolution and number of cores."""
    rows = []
    for (peer, resolution, cores), measured in runs.items():
        baseline = runs.get((BASELINE, resolution, cores), [])
        pairs = list(zip(measured, baseline, strict=False))
        ratio = [ours.images_per_second / theirs.images_per_second for ours, theirs in pairs]
        last = [ours.images_per_second_last_two / theirs.images_per_second_last_two for ours, theirs in pairs]
        rows.append(
            {
                "peer": peer,
                "resolution": resolution,
                "cores": cores,
                "images_per_second": statistics.median(run.images_per_second for run in measured),
                "images_per_second_last_two": statistics.median(run.images_per_second_last_two for run in measured),
                "ratio_to_ffcv": statistics.median(ratio) if ratio else None,
                "ratio_to_ffcv_last_two": statistics.median(last) if last else None,
                "first_batch_seconds_cold": measured[0].first_batch_seconds,
                "first_batch_seconds_warm": statistics.median(
                    run.first_batch_seconds for run in measured[1:] or measured
                ),
                "batch_seconds_p50": statistics.median(run.batch_seconds_p50 for run in measured),
                "batch_seconds_p99": statistics.median(run.batch_seconds_p99 for run in measured),
                "cpu_seconds_per_1000_images": statistics.median(run.cpu_seconds_per_1000_images for run in measured),
                "peak_memory_mb": statistics.median(run.peak_memory_mb for run in measured[1:] or measured),
                "runs": [asdict(run) for run in measured],
            }
        )
    return rows


def check_report(path: Path | None) -> None:
    """Raise RebarError, before anything is measured, if a report could not be written or would replace another file."""
    if path is None:
        return
    check_writable(path)
    if path.is_file() and path.stat().st_size and path.open("rb").read(1) != b"{":
        raise RebarError(f"{path} exists and is not a report. Choose another path.", code="write-target-exists")


def describe_machine() -> dict[str, Any]:
    """Return the processor, cores, memory, and package versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "versions": versions,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows, fastest first within each resolution and number of cores."""
    print(
        f"\n{'px':>4} {'cores':>5}  {'peer':24} {'img/s':>8} {'ratio':>6} {'last 2':>6} {'batch p50 / p99 ms':>18} "
        f"{'CPU s/1000':>10} {'first batch s':>13} {'MB':>6}"
    )
    for row in sorted(rows, key=lambda row: (row["resolution"], row["cores"], -row["images_per_second"])):
        ratio, last = (f"{row[name]:.2f}" if row[name] else "" for name in ("ratio_to_ffcv", "ratio_to_ffcv_last_two"))
        first = f"{row['first_batch_seconds_cold']:.1f} / {row['first_batch_seconds_warm']:.1f}"
        latency = f"{1000 * row['batch_seconds_p50']:.1f} / {1000 * row['batch_seconds_p99']:.1f}"
        cpu = row["cpu_seconds_per_1000_images"]
        print(
            f"{row['resolution']:4} {row['cores']:5}  {row['peer']:24} {row['images_per_second']:8.0f} {ratio:>6} "
            f"{last:>6} {latency:>18} {cpu:10.2f} {first:>13} {row['peak_memory_mb']:6.0f}"
        )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot one bar per row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = sorted({(row["resolution"], row["cores"]) for row in rows})
    figure = Figure(figsize=(9, 0.8 + 0.4 * len(rows) + 0.6 * len(groups)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (resolution, cores) in zip(np.atleast_1d(figure.subplots(len(groups), 1)), groups, strict=True):
        chosen = [row for row in rows if (row["resolution"], row["cores"]) == (resolution, cores)]
        chosen.sort(key=lambda row: row["images_per_second"])
        bars = axes.barh([row["peer"] for row in chosen], [row["images_per_second"] for row in chosen])
        axes.bar_label(
            bars, [f"{row['ratio_to_ffcv']:.2f}x" if row["ratio_to_ffcv"] else "" for row in chosen], padding=3
        )
        axes.set_title(f"{resolution} px, {cores} core{'s' if cores > 1 else ''}: images/s")
        axes.margins(x=0.1)
    figure.savefig(path, dpi=100)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder of images per class")
    parser.add_argument(
        "--peers", default=",".join(NAMES), help="comma-separated names, or NAME=PYTHON for another interpreter"
    )
    parser.add_argument("--resolutions", default="224,160", help="comma-separated, in pixels; default 224,160")
    parser.add_argument("--cores", default="", help="comma-separated numbers of cores; default one and all")
    parser.add_argument("--count", type=int, default=2048, help="maximum number of images; default 2048")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("benchmark_run"), help="folder for the beton and the JPEGs")
    parser.add_argument("--json", type=Path, help="write rows, machine and versions to this file")
    parser.add_argument("--image", type=Path, help="plot the rows to this PNG file")
    return parser.parse_args()


def main() -> None:
    """Prepare the data, run the peers interleaved, print and save the results."""
    arguments = parse_arguments()
    check_report(arguments.json)
    if arguments.image:
        check_writable(arguments.image)
    arguments.work.mkdir(parents=True, exist_ok=True)
    beton, folder = prepare(arguments.data, arguments.work.resolve(), arguments.count)
    named = [name.partition("=") for name in arguments.peers.split(",")]
    contestants = [Contestant(name, python or sys.executable) for name, _, python in named]
    all_cores = len(os.sched_getaffinity(0))
    cores = [int(text) for text in arguments.cores.split(",") if text] or sorted({1, all_cores})
    resolutions = [int(text) for text in arguments.resolutions.split(",")]
    numba_cache = arguments.work.resolve() / f"numba_{os.getpid()}"

    runs: dict[tuple[str, int, int], list[Measurement]] = {}
    skipped: dict[str, str] = {}
    for repetition in range(arguments.repetitions):
        for resolution in resolutions:
            for core_count in cores:
                for contestant in contestants:
                    if contestant.name in skipped:
                        continue
                    job = Job(str(beton), str(folder), resolution, core_count, arguments.batch_size, arguments.epochs)
                    result = run_peer(contestant, job, numba_cache)
                    if isinstance(result, str):
                        skipped[contestant.name] = result
                        print(f"{contestant.name} is skipped: {result}", flush=True)
                        continue
                    runs.setdefault((contestant.name, resolution, core_count), []).append(result)
                    print(
                        f"{repetition + 1}/{arguments.repetitions}  {resolution} px, {core_count} cores, "
                        f"{contestant.name}: {result.images_per_second:.0f} images/s",
                        flush=True,
                    )
    rows, idle = summarize(runs), idle_memory()
    print_table(rows)
    print(f"a process that only imports torch: {idle:.0f} MB")
    report = {
        "benchmark": "loader",
        "command": " ".join(["python", "benchmarks/loader.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "data": {"images": BetonFile.open(beton).num_samples, "bytes": beton.stat().st_size},
        "idle_torch_memory_mb": idle,
        "left_out": skipped,
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.image:
        draw(rows, arguments.image)


if __name__ == "__main__":
    run_command(lambda _: main())
