"""Run one peer in this process and print what was measured as one line of JSON.

    python benchmarks/run_peer.py rebar '{"beton": ..., "folder": ..., "resolution": 224, ...}'

``loader.py`` starts it, and it keeps to as many cores as the job may use.
"""

import importlib
import json
import os
import sys
import time

from peers import Job, Peer


def measure(peer: Peer, job: Job, started: float) -> dict[str, object]:
    """Seconds to the first batch (imports included) and of every epoch, and how many images an epoch had."""
    first_batch: float | None = None
    seconds, images = [], 0
    for batches in peer(job):
        began, images = time.perf_counter(), 0
        for size in batches:
            if first_batch is None:
                first_batch = time.perf_counter() - started
            images += size
        seconds.append(time.perf_counter() - began)
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
