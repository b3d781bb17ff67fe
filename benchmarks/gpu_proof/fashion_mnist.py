"""Train Fashion-MNIST to 94 % on the GPU, with as many seeds as the time limit allows."""

import json
import subprocess
import sys
import time

from benchmarks.gpu_proof.job import REPOSITORY, Job


def run(job: Job) -> None:
    """Run benchmarks/speedrun.py with 1, 2, ... seeds. It does not repeat finished runs."""
    if job.rehearse:
        job.add(seed=0, note="tests/benchmarks/test_benchmarks.py runs the speedrun on the CPU")
        return
    work = job.wait_for("speedrun")
    out = job.work / "speedrun_results"
    for seeds in range(1, 6):
        began = time.monotonic()
        command = ["benchmarks/speedrun.py", "--seeds", str(seeds), "--work", str(work), "--out", str(out)]
        try:
            done = subprocess.run([sys.executable, *command], cwd=REPOSITORY, timeout=max(job.seconds_left, 1))
        except subprocess.TimeoutExpired:
            job.note(stopped=f"no time left for seed {seeds - 1}")
            return
        if done.returncode:
            raise RuntimeError(f"benchmarks/speedrun.py exited with status {done.returncode}")
        content = json.loads((out / "speedrun.json").read_text())
        wall = time.monotonic() - began
        row = content["runs"][-1]
        job.add(**row, wall_seconds=wall, start_and_evaluation_seconds=wall - row["train_seconds"])
        job.note(**{name: content[name] for name in content if name.endswith(("_mean", "_deviation"))})
