"""Run one peer in this process, limited to the job's number of cores, and print its times as a line of JSON.

    python benchmarks/run_peer.py rebar '{"beton": ..., "folder": ..., "resolution": 224, ...}'

``benchmarks/loader.py`` starts this script.
"""

import contextlib
import importlib
import itertools
import json
import math
import os
import sys
import time

from peers import Job, Peer


def measure(peer: Peer, job: Job, started: float) -> dict[str, object]:
    """Return the measurements of a run.

    Seconds to the first batch, including imports; seconds per epoch; images per epoch; and, without the first epoch,
    the median and the 99th percentile of the seconds until a batch arrives, and CPU seconds per 1,000 images.
    """
    first_batch: float | None = None
    seconds: list[float] = []
    latencies: list[list[float]] = []
    images, cpu_at_ends = 0, [cpu_seconds()]
    for batches in peer(job):
        start = requested = time.perf_counter()
        images, latency = 0, []
        for size in batches:
            now = time.perf_counter()
            if first_batch is None:
                first_batch = now - started
            latency.append(now - requested)
            requested = now
            images += size
        seconds.append(time.perf_counter() - start)
        latencies.append(latency)
        cpu_at_ends.append(cpu_seconds())
    first, *later = latencies
    ordered = sorted(itertools.chain.from_iterable(later or [first]))
    cpu = cpu_at_ends[-1] - cpu_at_ends[1 if later else 0]
    return {
        "first_batch_seconds": first_batch,
        "epoch_seconds": seconds,
        "images": images,
        "batch_seconds_p50": percentile(ordered, 0.5),
        "batch_seconds_p99": percentile(ordered, 0.99),
        "cpu_seconds_per_1000_images": 1000 * cpu / (images * max(len(later), 1)),
    }


def percentile(ordered: list[float], fraction: float) -> float:
    """Return the smallest of the sorted values that at least ``fraction`` of them do not exceed."""
    return ordered[math.ceil(fraction * len(ordered)) - 1]


def cpu_seconds() -> float:
    """Return the CPU seconds, user and system, of this process and its descendants so far, ended ones included."""
    parents, ticks = {}, {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # the process has just ended
                with open(f"/proc/{entry.name}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()  # from the third field on: see man 5 proc
                parents[int(entry.name)] = int(fields[1])
                ticks[int(entry.name)] = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    family = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in family} - family:
        family |= more
    running = sum(ticks[process] for process in family - {os.getpid()}) / os.sysconf("SC_CLK_TCK")
    ended = os.times()
    # The time of this process is exact, the others' are counted in ticks of 10 ms.
    return time.process_time() + ended.children_user + ended.children_system + running


def main() -> None:
    """Run the peer named on the command line."""
    name, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.cores])
    started = time.perf_counter()
    module = importlib.import_module(f"peers.{name}")
    print(json.dumps(measure(module.epochs, job, started)))


if __name__ == "__main__":
    main()
