"""Compare the images/s of Rebar's writer and stock FFCV's on the same files, with the same number of processes.

    python benchmarks/writer.py --data photographs --json writer.json

``--data`` is any folder of class folders of images (photographs.py creates one). It is converted to four cases:

- ``passthrough``: JPEGs of at most 500 px at quality 90, within the limits of both writers.
- ``optimised``: the same with optimized Huffman tables, which Rebar replaces with the standard ones.
- ``finer``: the same at quality 96, like ImageNet's originals: must be requantized or re-encoded.
- ``larger``: 800 px at quality 96: must be downscaled and re-encoded.

Each writer writes a few images, then many, each time in a new process. The rate is the difference in images divided
by the difference in time, which excludes the startup. Writers alternate for several repetitions; times are medians.
Rates by CPU time of all processes are reported too, because other load on the machine affects them less.

``ffcv`` is FFCV's DatasetWriter with Pillow images, as in ffcv-imagenet; ``rebar`` is write_beton as in
write_dataset.py.
"""

import argparse
import datetime
import itertools
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from loader import check_report, describe_machine

from rebar.cli import run_command

REPOSITORY = Path(__file__).resolve().parent.parent
LONG_SIDE, QUALITY, FINER_QUALITY, LARGER_SIDE = 500, 90, 96, 800
CASES = ("passthrough", "optimised", "finer", "larger")
PEERS = ("ffcv", "rebar")
FEW = 100


def make_case(case: str, data: Path, folder: Path, count: int) -> None:
    """Create a folder of class folders with ``count`` JPEGs of a case, repeating the images of ``data``."""
    from rebar.beton.decode import SizeLimit, decode
    from rebar.sources import ImageFolder

    source = ImageFolder(data)
    paths: list[Path] = []
    for index in range(min(len(source), count)):
        bgr = decode(source.read(index), SizeLimit(0)).bgr
        side, quality = (
            (LARGER_SIDE if case == "larger" else LONG_SIDE),
            (QUALITY if case in ("passthrough", "optimised") else FINER_QUALITY),
        )
        scale = side / max(bgr.shape[:2])
        size = (max(1, int(bgr.shape[1] * scale)), max(1, int(bgr.shape[0] * scale)))
        resized = (
            bgr if scale == 1 else cv2.resize(bgr, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        )
        path = folder / f"{index % 10:02}" / f"{index:06}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, int(case == "optimised")]
        path.write_bytes(cv2.imencode(".jpg", resized, settings)[1].tobytes())
        paths.append(path)
    for number, path in zip(range(len(paths), count), itertools.cycle(paths), strict=False):
        (path.parent / f"{number:06}.JPEG").hardlink_to(path)


def write_with_rebar(tree: Path, out: Path, count: int, workers: int) -> None:
    """Write as write_dataset.py does."""
    from rebar.beton import ImagePolicy, write_beton
    from rebar.sources import ImageFolder

    source = ImageFolder(tree)
    order = np.arange(len(source))[:count]
    write_beton(source, out, policy=ImagePolicy(), order=order, num_workers=workers, progress=False)


def write_with_ffcv(tree: Path, out: Path, count: int, workers: int) -> None:
    """Write as ffcv-imagenet's write_imagenet.py does."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from PIL import Image

    from rebar.sources import ImageFolder

    source = ImageFolder(tree)  # same images and order as torchvision's

    class Images:
        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> tuple[Any, int]:
            with open(source.name(index), "rb") as file, Image.open(file) as image:
                return image.convert("RGB"), source.label(index)

    fields = {
        "image": RGBImageField(write_mode="jpg", max_resolution=LONG_SIDE, jpeg_quality=QUALITY),
        "label": IntField(),
    }
    DatasetWriter(str(out), fields, num_workers=workers).from_indexed_dataset(Images(), chunksize=100)


def measure(peer: str, tree: Path, out: Path, count: int, workers: int) -> tuple[float, float]:
    """Return the wall-clock seconds and the CPU seconds of all processes for one run of a peer."""
    args = ["--peer", peer, "--data", tree, "--out", out, "--count", count, "--workers", workers]
    done = subprocess.run(
        [sys.executable, __file__, *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"{peer} failed:\n{done.stderr}")
    wall, processor = json.loads(done.stdout.splitlines()[-1])
    return wall, processor


def run_peer(arguments: argparse.Namespace) -> None:
    """Write once; print wall-clock and CPU seconds."""
    write = {"rebar": write_with_rebar, "ffcv": write_with_ffcv}[arguments.peer]
    begin = time.perf_counter()
    write(arguments.data, arguments.out, arguments.count, arguments.workers)
    seconds = time.perf_counter() - begin
    # CPU time is only counted for processes that were waited for: FFCV's workers and Rebar's fork server are not.
    for child in multiprocessing.active_children():
        child.join()
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps([seconds, sum(usage.ru_utime + usage.ru_stime for usage in used)]))


def summarize(runs: dict[tuple[str, str, int], list[tuple[float, float]]], count: int) -> list[dict[str, Any]]:
    """Return one row per peer and case."""

    def rate(peer: str, case: str, kind: int) -> float:
        few, many = (statistics.median(run[kind] for run in runs[peer, case, number]) for number in (FEW, count))
        return (count - FEW) / (many - few)

    return [
        {
            "peer": peer,
            "case": case,
            "images_per_second": rate(peer, case, 0),
            "ratio_to_ffcv": rate(peer, case, 0) / rate("ffcv", case, 0),
            "images_per_processor_second": rate(peer, case, 1),
            "processor_ratio_to_ffcv": rate(peer, case, 1) / rate("ffcv", case, 1),
            "seconds": {str(number): runs[peer, case, number] for number in (FEW, count)},
        }
        for peer, case, number in runs
        if number == count
    ]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders of images")
    parser.add_argument("--json", type=Path, help="file for the rows, the machine and the versions")
    parser.add_argument("--count", type=int, default=4000, help="images of the large run")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="worker processes; default: cores"
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--work", type=Path, default=Path("benchmark_run/writer"), help="folder for temporary files")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Create the cases, run the writers alternately, print and save the results."""
    arguments = parse_arguments()
    check_report(arguments.json)
    if arguments.peer:
        run_peer(arguments)
        return
    sys.path.insert(0, str(REPOSITORY))
    runs: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    cases = arguments.cases.split(",")
    arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        work = Path(name)
        for case in cases:
            make_case(case, arguments.data, work / case, arguments.count)
        for case, peer in itertools.product(cases, PEERS):  # fills compilation caches
            measure(peer, work / case, work / f"{peer}.beton", FEW, arguments.workers)
        for repetition in range(arguments.repetitions):
            for case, number, peer in itertools.product(cases, (FEW, arguments.count), PEERS):
                seconds = measure(peer, work / case, work / f"{peer}.beton", number, arguments.workers)
                runs.setdefault((peer, case, number), []).append(seconds)
                times = f"{seconds[0]:.2f} s, {seconds[1]:.2f} s CPU time"
                print(f"{repetition + 1}/{arguments.repetitions}  {case}, {peer}, {number} images: {times}", flush=True)
    rows = summarize(runs, arguments.count)
    print(f"\n{'case':12} {'peer':6} {'images/s':>10} {'ratio':>6} {'by CPU time':>17} {'ratio':>6}")
    for row in rows:
        print(
            f"{row['case']:12} {row['peer']:6} {row['images_per_second']:10,.0f} {row['ratio_to_ffcv']:6.2f} "
            f"{row['images_per_processor_second']:17,.0f} {row['processor_ratio_to_ffcv']:6.2f}"
        )
    if arguments.json:
        report = {
            "benchmark": "writer",
            "command": " ".join(["python", "benchmarks/writer.py", *sys.argv[1:]]),
            "date": datetime.date.today().isoformat(),
            "machine": describe_machine(),
            "load_average": os.getloadavg(),  # values above the number of workers indicate other load
            "workers": arguments.workers,
            "count": arguments.count,
            "repetitions": arguments.repetitions,
            "figures": "medians over the repetitions of the difference between large and small runs",
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run_command(lambda _: main())
