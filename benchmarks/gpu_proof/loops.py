"""Compare the training loops of Rebar, ffcv-imagenet, timm and torchvision on the same batches in one process."""

import json
import subprocess
import sys

from benchmarks.gpu_proof.job import REPOSITORY, Job


def run(job: Job) -> None:
    """Run benchmarks/training.py and copy its rows."""
    report = job.out / "loops_training.json"
    sizes = "--arch resnet18 --resolution 32 --batch-size 4 --steps 2 --repetitions 1 --precision 32"
    if not job.rehearse:
        sizes = "--arch resnet50 --resolution 224 160 --batch-size 256 --steps 20 --repetitions 3 --precision bf16"
    loops = ["torchvision_reference", "ffcv_imagenet", "rebar"]
    try:
        import timm  # noqa: F401

        loops.append("timm_train")
    except Exception as error:  # not installed, or built for another torch
        job.note(timm=f"left out: {error}")
    command = [
        sys.executable,
        "benchmarks/training.py",
        *sizes.split(),
        "--loops",
        ",".join(loops),
        "--json",
        str(report),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, timeout=job.seconds_left)
    if done.returncode:
        raise RuntimeError(f"benchmarks/training.py exited with status {done.returncode}")
    content = json.loads(report.read_text())
    report.unlink()
    job.note(loop_command=content["command"].replace(str(job.out), "DIR"))
    for row in content["rows"]:
        job.add(**{name: value for name, value in row.items() if name != "epoch_seconds"})
