"""Measure the time and memory of opening WebDataset shards, without and with a cached index.

    python benchmarks/open_tars.py --samples 1281000 14200000 --json OUT

Each sample is ``KEY.jpg`` of 4 bytes and ``KEY.cls``; 1,000 samples are in a shard. All shards are hard links to one
file, so the headers are in the page cache and no disk is measured. Every measurement runs in a new process. CPU time
includes the worker processes; memory is the peak of the main process, without what it needs before it opens the shards.
"""

import argparse
import ctypes
import datetime
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loader import check_report

from rebar.cli import count, run_command
from rebar.storage.files import CACHE_VARIABLE

SAMPLES_PER_SHARD = 1000
_PR_SET_CHILD_SUBREAPER = 36
_MEASURE = "--measure"
_OPEN = """
import json, resource, sys, time
from rebar.sources.registry import Request, open_source
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, start = peak(), time.perf_counter()
_, source = open_source(Request(sys.argv[1], "train"))
seconds = time.perf_counter() - start
print(json.dumps({"samples": len(source), "seconds": seconds, "peak_bytes": peak() - before}))
"""


def write_shards(folder: Path, samples: int) -> None:
    """Write shards with ``samples`` samples, a multiple of SAMPLES_PER_SHARD, in 1,000 classes."""
    first = folder / "train-000000.tar"
    with tarfile.open(first, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(SAMPLES_PER_SHARD):
            for extension, content in (("jpg", b"\xff\xd8\xff\xd9"), ("cls", str(number % 1000).encode())):
                entry = tarfile.TarInfo(f"{number:09}.{extension}")
                entry.size = len(content)
                tar.addfile(entry, BytesIO(content))
    for number in range(1, samples // SAMPLES_PER_SHARD):
        os.link(first, folder / f"train-{number:06}.tar")


def measure(shards: Path, cache: Path) -> dict[str, float]:
    """Open the shards in new processes; return samples, seconds, peak_bytes and cpu_seconds."""
    command = [sys.executable, str(Path(__file__).resolve()), _MEASURE, str(shards), str(cache)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        raise SystemExit(process.stderr)
    result: dict[str, float] = json.loads(process.stdout)
    return result


def print_measurement(shards: str, cache: str) -> None:
    """Print the result of :func:`measure`. This process waits for all processes that open the shards."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    environment = os.environ | {CACHE_VARIABLE: cache, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    process = subprocess.run([sys.executable, "-c", _OPEN, shards], env=environment, stdout=subprocess.PIPE, check=True)
    while True:  # the fork server of the worker processes, which becomes a child of this process
        try:
            os.wait()
        except ChildProcessError:
            break
    print(json.dumps(json.loads(process.stdout) | {"cpu_seconds": sum(os.times()[2:4])}))


def run(samples: int, work: Path) -> list[dict[str, object]]:
    """Return the measurements of a number of samples: without and with the cached index."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        shards, cache = Path(folder) / "shards", Path(folder) / "cache"
        shards.mkdir()
        write_shards(shards, samples)
        rows: list[dict[str, object]] = []
        for case in ("indexed", "from the cached index"):
            load, start = os.getloadavg()[0], time.time()
            found = measure(shards, cache)
            per_sample = found["peak_bytes"] / found["samples"]
            rows.append({"case": case, "bytes_per_sample": per_sample, "load": load, "start": start, **found})
            print(
                f"{int(found['samples']):>12,} samples {case:<22} {found['seconds']:7.1f} s  "
                f"{found['cpu_seconds']:7.1f} CPU s  {found['peak_bytes'] / 1e6:7,.0f} MB at the peak, "
                f"{per_sample:4.0f} bytes per sample  (load before: {load:.1f})",
                flush=True,
            )
    return rows


def main() -> None:
    """Parse the command line, measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[1_281_000], help="multiples of 1,000")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="folder for the shards")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    check_report(options.json)
    print(f"{count(len(os.sched_getaffinity(0)), 'core')}, {datetime.date.today()}")
    rows = [row for samples in options.samples for row in run(samples, options.work)]
    if options.json:
        options.json.write_text(json.dumps({"cores": len(os.sched_getaffinity(0)), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == [_MEASURE]:
        print_measurement(*sys.argv[2:])
    else:
        run_command(lambda _: main())
