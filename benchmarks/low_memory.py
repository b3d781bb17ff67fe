"""Measure reading a beton that is larger than the memory: images/s, bytes read per byte needed, and memory.

    python benchmarks/low_memory.py --data photographs --work DIR --json low_memory.json

The images of ``--data`` are repeated until the beton has ``--gigabytes``. Each case runs in a memory control group of
``--memory-mb``, plus ``--memory-mb-per-process`` for each process after the first, because every process has its own
copy of torch. All processes together read every image once per epoch. The first epoch starts with an empty page cache.
Bytes read are those of /proc/PID/io (reads from the disk), bytes needed the sizes of the images.

Control groups need root. Without them, and with ``--no-limit``, the page cache is emptied before each epoch instead:
this measures cold starts, but not what happens when cached data is evicted.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loader import check_report, describe_machine

from rebar.beton import BetonFile, ImagePolicy, write_beton
from rebar.cli import run_command
from rebar.sources import ImageFolder

CGROUPS = Path("/sys/fs/cgroup")
RESOLUTION = 160


@dataclass(frozen=True)
class Case:
    """One measurement."""

    loader: str
    os_cache: bool | None
    order: str
    processes: int


def prepare(data: Path, work: Path, gigabytes: float) -> Path:
    """Write the beton once, and return its path."""
    path = work / f"images_{gigabytes:g}_gb.beton"
    if not path.exists():
        source = ImageFolder(data)
        mean = sum(len(source.read(index)) for index in range(len(source))) / len(source)
        order = np.arange(int(gigabytes * 1e9 / mean)) % len(source)
        write_beton(source, path, policy=ImagePolicy(), order=order, num_workers=os.cpu_count() or 1, progress=False)
    return path


def drop_from_cache(path: Path) -> None:
    """Remove a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def kernel_read_ahead_kb(path: Path) -> int | None:
    """Return the kernel's read-ahead of the device that a file is stored on, in KB."""
    device = os.stat(path).st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return int(setting.read_text()) if setting.exists() else None


@contextlib.contextmanager
def memory_group(megabytes: int) -> Iterator[Path]:
    """Create a control group with a memory limit, and yield its folder. Raises OSError without permission."""
    is_version_1 = (CGROUPS / "memory").exists()
    folder = (CGROUPS / "memory" if is_version_1 else CGROUPS) / f"rebar_low_memory_{os.getpid()}"
    if not is_version_1:
        with contextlib.suppress(OSError):
            (CGROUPS / "cgroup.subtree_control").write_text("+memory")
    folder.mkdir()
    try:
        limit = "memory.limit_in_bytes" if is_version_1 else "memory.max"
        (folder / limit).write_text(str(megabytes << 20))
        yield folder
    finally:
        for _ in range(100):  # until the kernel has removed the ended processes
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)


def own_memory_mb() -> float:
    """Return this process's memory in MB, without mapped files."""
    status = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in status if line.startswith(("RssAnon:", "RssShmem:"))) / 1024


def bytes_read() -> int:
    """Return the bytes that this process has read from disks."""
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("read_bytes:"))
    return int(line.split()[1])


def rebar_epochs(job: dict[str, Any]) -> Iterator[Iterator[int]]:
    """Yield an iterator over the batch sizes per epoch."""
    from rebar.loading import Loader, RandomResizedCrop

    cache = {} if job["os_cache"] is None else {"os_cache": job["os_cache"]}
    rank, world_size = job["rank"], job["processes"]
    loader = Loader(
        job["path"],
        job["batch_size"],
        1,
        order=job["order"],
        cropper=RandomResizedCrop(),
        resolution=RESOLUTION,
        rank=rank,
        world_size=world_size,
        **cache,
    )
    for _ in range(job["epochs"]):
        yield (len(batch.labels) for batch in loader)


def ffcv_epochs(job: dict[str, Any]) -> Iterator[Iterator[int]]:
    """Yield an iterator over the batch sizes per epoch. A process reads every ``processes``-th image."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor

    image = [RandomResizedCropRGBImageDecoder((RESOLUTION, RESOLUTION)), RandomHorizontalFlip(), ToTensor()]
    loader = Loader(
        job["path"],
        batch_size=job["batch_size"],
        num_workers=1,
        os_cache=job["os_cache"],
        order=OrderOption[job["order"]],
        indices=np.arange(job["rank"], BetonFile.open(job["path"]).num_samples, job["processes"]),
        drop_last=True,
        pipelines={"image": image, "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )
    for _ in range(job["epochs"]):
        yield (len(labels) for _, labels in loader)


def work(job: dict[str, Any]) -> None:
    """Run one process of a case, and print a line of JSON per epoch."""
    epochs = {"rebar": rebar_epochs, "ffcv": ffcv_epochs}[job["loader"]]
    for batches in epochs(job):
        if job["drops_cache"]:
            drop_from_cache(Path(job["path"]))
        start, before, images, memory = time.perf_counter(), bytes_read(), 0, 0.0
        first_batch = None
        for number, size in enumerate(itertools.islice(batches, job["batches"])):
            first_batch = first_batch or time.perf_counter() - start
            images += size
            if number % 8 == 0:
                memory = max(memory, own_memory_mb())
        row = {
            "images": images,
            "seconds": time.perf_counter() - start,
            "first_batch_seconds": first_batch,
            "bytes_read": bytes_read() - before,
            "own_memory_mb": memory,
        }
        print(json.dumps(row), flush=True)


def run_case(case: Case, path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a case; return its row of the table, with the reason if it failed."""
    limit = arguments.memory_mb + arguments.memory_mb_per_process * (case.processes - 1)
    drop_from_cache(path)
    with contextlib.nullcontext() if arguments.no_limit else memory_group(limit) as group:
        processes = [start_process(case, rank, path, group, arguments) for rank in range(case.processes)]
        outputs = [process.communicate() for process in processes]
    row: dict[str, Any] = {**asdict(case), "limit_mb": None if arguments.no_limit else limit}
    failed = [process.returncode for process in processes if process.returncode]
    if failed:
        messages = [errors.strip().splitlines()[-1] for _, errors in outputs if errors.strip()]
        reason = "killed: out of memory" if -9 in failed else (messages or ["no message"])[0]
        return {**row, "failed": reason}
    epochs = zip(*([json.loads(line) for line in output.splitlines()] for output, _ in outputs), strict=True)
    beton = BetonFile.open(path)
    mean_size = float(beton.sizes.mean())
    return {**row, "epochs": [summarize(ranks, mean_size) for ranks in epochs]}


def summarize(ranks: tuple[dict[str, Any], ...], mean_size: float) -> dict[str, float]:
    """Combine one epoch of all processes."""
    images = sum(rank["images"] for rank in ranks)
    return {
        "images_per_second": images / max(rank["seconds"] for rank in ranks),
        "first_batch_seconds": max(rank["first_batch_seconds"] for rank in ranks),
        "bytes_read_per_byte_needed": sum(rank["bytes_read"] for rank in ranks) / (images * mean_size),
        "own_memory_mb_per_process": max(rank["own_memory_mb"] for rank in ranks),
    }


def start_process(
    case: Case, rank: int, path: Path, group: Path | None, arguments: argparse.Namespace
) -> "subprocess.Popen[str]":
    """Start one process of a case in the control group."""
    job = {
        **asdict(case),
        "rank": rank,
        "path": str(path),
        "batch_size": arguments.batch_size,
        "epochs": arguments.epochs,
        "batches": arguments.batches,
        "drops_cache": arguments.no_limit,
    }
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    if group is not None:
        command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *command]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "LOCAL_WORLD_SIZE": str(case.processes)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def print_row(row: dict[str, Any]) -> None:
    """Print the cold first epoch and the last epoch of a case."""
    cache = {None: "default"}.get(row["os_cache"], str(row["os_cache"]))
    head = f"{row['loader']:6} {row['order']:13} {cache:8} {row['processes']}"
    if "failed" in row:
        print(f"{head}  {row['failed']}", flush=True)
        return
    for name, epoch in (("cold", row["epochs"][0]), ("last", row["epochs"][-1])):
        print(
            f"{head}  {name}: {epoch['images_per_second']:6.0f} images/s, first batch "
            f"{epoch['first_batch_seconds']:.2f} s, {epoch['bytes_read_per_byte_needed']:6.2f} bytes read per byte, "
            f"{epoch['own_memory_mb_per_process']:.0f} MB",
            flush=True,
        )


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with one folder of images per class")
    parser.add_argument("--work", type=Path, default=Path("benchmark_run"), help="folder for the beton")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the beton; default 1")
    parser.add_argument("--memory-mb", type=int, default=440, help="limit for one process; default 440")
    parser.add_argument("--memory-mb-per-process", type=int, default=330, help="for each further one; default 330")
    parser.add_argument("--no-limit", action="store_true", help="no control group; the cache is emptied every epoch")
    parser.add_argument("--loaders", default="rebar,ffcv")
    parser.add_argument("--os-cache", default="None", help="comma-separated; default None, which is False for FFCV")
    parser.add_argument("--orders", default="RANDOM,QUASI_RANDOM")
    parser.add_argument("--processes", default="1,4")
    parser.add_argument("--batch-size", type=int, default=128, help="per process")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batches", type=int, help="end epochs after this number of batches")
    parser.add_argument("--json", type=Path, help="write rows, machine and versions to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run all cases, print and save the results."""
    arguments = parse_arguments()
    check_report(arguments.json)
    if arguments.worker:
        work(json.loads(arguments.worker))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    path = prepare(arguments.data, arguments.work.resolve(), arguments.gigabytes)
    caches = [{"None": None, "True": True, "False": False}[text] for text in arguments.os_cache.split(",")]
    rows = []
    for processes, order, loader, os_cache in itertools.product(
        arguments.processes.split(","), arguments.orders.split(","), arguments.loaders.split(","), caches
    ):
        chosen = False if loader == "ffcv" and os_cache is None else os_cache
        rows.append(run_case(Case(loader, chosen, order, int(processes)), path, arguments))
        print_row(rows[-1])
    beton = BetonFile.open(path)
    report = {
        "benchmark": "low_memory",
        "command": " ".join(["python", "benchmarks/low_memory.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": {**describe_machine(), "read_ahead_kb": kernel_read_ahead_kb(path)},
        "data": {"images": beton.num_samples, "bytes": int(beton.sizes.sum()), "batch_size": arguments.batch_size},
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run_command(lambda _: main())
