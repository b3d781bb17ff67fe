"""Images a second of Rebar's writer and of stock FFCV's: the same files, the same number of processes, one run.

    python benchmarks/writer.py --data photographs --json writer.json

``--data`` is any folder of class folders of images (photographs.py makes one). Four cases are made of it:

- ``passthrough``: JPEGs of at most 500 px at quality 90: within the limits that both writers are given.
- ``optimised``: the same with Huffman codes of their own, for which Rebar puts in the standard ones.
- ``finer``: the same at quality 96, about as ImageNet's originals are: must be encoded anew.
- ``larger``: 800 px at quality 96: must be shrunk and encoded anew.

Each writer writes a few images, then many, in a process of its own, and the figure is the many less the few by the
time between: what a whole data set is written at, without what it costs to begin. The writers take turns, several
times over; the times are medians of all turns. Beside the images a second stand those a second of processor time, of
all processes together, which other work on the machine disturbs less.

``ffcv`` is its DatasetWriter with Pillow's images, as ffcv-imagenet uses it; ``rebar`` is write_beton as
write_dataset.py calls it.
"""

import argparse
import datetime
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from loader import describe_machine

REPOSITORY = Path(__file__).resolve().parent.parent
LONG_SIDE, QUALITY, FINER_QUALITY, LARGER_SIDE = 500, 90, 96, 800
CASES = ("passthrough", "optimised", "finer", "larger")
PEERS = ("ffcv", "rebar")
FEW = 100


def make_case(case: str, data: Path, folder: Path, count: int) -> None:
    """A folder of class folders of ``count`` JPEGs of a case; the images of ``data`` come again and again."""
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
    """As write_dataset.py does."""
    from rebar.beton import ImagePolicy, write_beton
    from rebar.sources import ImageFolder

    source = ImageFolder(tree)
    order = np.arange(len(source))[:count]
    write_beton(source, out, policy=ImagePolicy(), order=order, num_workers=workers, progress=False)


def write_with_ffcv(tree: Path, out: Path, count: int, workers: int) -> None:
    """As ffcv-imagenet's write_imagenet.py does."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from PIL import Image

    from rebar.sources import ImageFolder

    source = ImageFolder(tree)  # its images and their order are torchvision's

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
    """Of one peer: the seconds that writing takes, and those of processor time, of all of its processes."""
    words = ["--peer", peer, "--data", tree, "--out", out, "--count", count, "--workers", workers]
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"{peer} failed:\n{done.stderr}")
    wall, processor = json.loads(done.stdout.splitlines()[-1])
    return wall, processor


def run_peer(arguments: argparse.Namespace) -> None:
    """Write once, and print the seconds it took, and those of processor time."""
    write = {"rebar": write_with_rebar, "ffcv": write_with_ffcv}[arguments.peer]
    begin = time.perf_counter()
    write(arguments.data, arguments.out, arguments.count, arguments.workers)
    seconds = time.perf_counter() - begin
    # Processor time is known of processes that were waited for: FFCV's are not, and what makes Rebar's lives on.
    for child in multiprocessing.active_children():
        child.join()
    forkserver._forkserver._stop()
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps([seconds, sum(usage.ru_utime + usage.ru_stime for usage in used)]))


def summarise(runs: dict[tuple[str, str, int], list[tuple[float, float]]], count: int) -> list[dict[str, Any]]:
    """One row for each peer and case."""

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
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders of images")
    parser.add_argument("--json", type=Path, help="write the rows, the machine and the versions there")
    parser.add_argument("--count", type=int, default=4000, help="images written at a time")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes; default: cores")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--work", type=Path, default=Path("benchmark_run/writer"), help="folder for what is written")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Make the cases, run the writers in turn, print and save."""
    arguments = parse_arguments()
    if arguments.peer:
        run_peer(arguments)
        return
    sys.path.insert(0, str(REPOSITORY))
    runs: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    cases = arguments.cases.split(",")
    shutil.rmtree(arguments.work, ignore_errors=True)
    for case in cases:
        make_case(case, arguments.data, arguments.work / case, arguments.count)
    for case, peer in itertools.product(cases, PEERS):  # what is compiled once a machine is compiled now
        measure(peer, arguments.work / case, arguments.work / f"{peer}.beton", FEW, arguments.workers)
    for repetition in range(arguments.repetitions):
        for case, number, peer in itertools.product(cases, (FEW, arguments.count), PEERS):
            out = arguments.work / f"{peer}.beton"
            seconds = measure(peer, arguments.work / case, out, number, arguments.workers)
            runs.setdefault((peer, case, number), []).append(seconds)
            said = f"{seconds[0]:.2f} s, {seconds[1]:.2f} s of processor time"
            print(f"{repetition + 1}/{arguments.repetitions}  {case}, {peer}, {number} images: {said}", flush=True)
    rows = summarise(runs, arguments.count)
    print(f"\n{'case':12} {'peer':6} {'images/s':>10} {'ratio':>6} {'of processor time':>17} {'ratio':>6}")
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
            "load_average": os.getloadavg(),  # beyond the workers and these cores, others were at work
            "workers": arguments.workers,
            "count": arguments.count,
            "repetitions": arguments.repetitions,
            "figures": "medians over the repetitions of the seconds, many images less few; see the program",
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
