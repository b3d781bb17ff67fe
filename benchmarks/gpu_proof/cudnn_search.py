"""Cost and benefit of cuDNN's algorithm search (``cudnn.benchmark``), measured in a new process per setting."""

import subprocess
import sys

import torch

from benchmarks.gpu_proof.job import REPOSITORY, Job
from benchmarks.gpu_proof.training_step import build_stepper, time_steps

LIMITS = (10, 3, 1, 0)
"""Number of algorithms tried per convolution. 10 is torch's default; 0 uses cuDNN's heuristic without a search."""


def run(job: Job) -> None:
    """Add a row per limit. Each limit needs a new process, because cuDNN's results are cached in the process."""
    for limit in LIMITS[:1] if job.rehearse else LIMITS:
        if job.seconds_left < 15:
            job.skip(f"limit {limit}")
            continue
        args = ["-m", "benchmarks.gpu_proof.cudnn_search", str(job.out), str(job.work), str(limit), str(job.rehearse)]
        done = subprocess.run(
            [sys.executable, *args], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, timeout=job.seconds_left
        )
        if done.returncode:
            job.add(limit=limit, error=f"exit status {done.returncode}")
            continue
        images_per_second, first = map(float, done.stdout.split()[-2:])
        job.add(limit=limit, images_per_second=images_per_second, first_step_seconds=first)


def main(out: str, work: str, limit: int, *, rehearse: bool) -> None:
    """Print the images per second at 160 px and the seconds of the first step."""
    from pathlib import Path

    job = Job("cudnn_search", Path(out), Path(work), rehearse, deadline=0.0)
    torch.backends.cudnn.benchmark = limit > 0
    torch.backends.cudnn.benchmark_limit = max(limit, 1)
    sizes = {"resolution": 32, "batch_size": 4} if rehearse else {"resolution": 160, "batch_size": 256}
    if not rehearse:  # load the CUDA and cuDNN libraries, which is not part of the search
        torch.nn.functional.conv2d(torch.ones(1, 8, 8, 8, device="cuda"), torch.ones(8, 8, 3, 3, device="cuda"))
    stepper = build_stepper(job, resolution=sizes["resolution"], batch_size=sizes["batch_size"])
    result = time_steps(job, stepper, seconds=0.2 if rehearse else 1.0, **sizes)
    print(result["images_per_second"], result["first_step_seconds"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), rehearse=sys.argv[4] == "True")
