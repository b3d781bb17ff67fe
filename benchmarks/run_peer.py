"""Run one peer in this process, limited to the job's number of cores, and print its times as a line of JSON.

    python benchmarks/run_peer.py rebar '{"beton": ..., "folder": ..., "resolution": 224, ...}'

``benchmarks/loader.py`` starts this script.
"""

import importlib
import json
import os
import sys
import time

from peers import Job, Peer


def measure(peer: Peer, job: Job, started: float) -> dict[str, object]:
    """Return the seconds to the first batch, including imports, the seconds per epoch, and the images per epoch."""
    first_batch: float | None = None
    seconds, images = [], 0
    for batches in peer(job):
        start, images = time.perf_counter(), 0
        for size in batches:
            if first_batch is None:
                first_batch = time.perf_counter() - started
            images += size
        seconds.append(time.perf_counter() - start)
    return {"first_batch_seconds": first_batch, "epoch_seconds": seconds, "images": images}


def main() -> None:
    """Run the peer named on the command line."""
    name, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.cores])
    started = time.perf_counter()
    module = importlib.import_module(f"peers.{name}")
    print(json.dumps(measure(module.epochs, job, started)))


if __name__ == "__main__":
    main()
