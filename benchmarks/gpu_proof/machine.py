"""Hardware, driver and versions, and the peak throughput of the GPU for matrix products and copies."""

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu_proof.job import Job

PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "timm",
    "numba",
    "numpy",
    "opencv-python-headless",
    "ffcv",
    "pytest-xdist",
)


def run(job: Job) -> None:
    """Add one row."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    facts = {
        "gpu": torch.cuda.get_device_name() if not job.rehearse else "none",
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor_name(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **versions,
        "libturbojpeg": turbojpeg(),
    }
    if not job.rehearse:
        query = "--query-gpu=driver_version,memory.total,clocks.max.sm,power.limit,temperature.gpu"
        done = subprocess.run(["nvidia-smi", query, "--format=csv"], capture_output=True, text=True)
        facts["nvidia_smi"] = done.stdout.strip().replace("\n", "; ") or done.stderr.strip()
    facts.update(ceilings(job))
    job.add(**facts)
    print(json.dumps(facts, indent=1))


def _processor_name() -> str:
    """Return the CPU's model name, or "?" if /proc/cpuinfo does not have it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")


def turbojpeg() -> str:
    """Return whether libturbojpeg can be loaded: "yes", or "no" and the exception."""
    from rebar.jpeg.turbojpeg import load_turbojpeg

    try:
        load_turbojpeg()
    except Exception as error:
        return f"no: {type(error).__name__}"
    return "yes"


def ceilings(job: Job) -> dict[str, float]:
    """Measure bf16 matrix products of random data in TFLOP/s, and device-to-device copies in TB/s (read + write)."""
    size, count = (256, 2) if job.rehearse else (8192, 20)
    a, b = (torch.randn(size, size, device=job.device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(size * size * (1 if job.rehearse else 8), device=job.device)
    target = torch.empty_like(source)
    products = _seconds(lambda: a @ b, count, job)
    copies = _seconds(lambda: target.copy_(source), count, job)
    return {
        "matmul_bf16_tflops": 2 * size**3 / products / 1e12,
        "copy_tb_per_second": 2 * source.numel() * source.element_size() / copies / 1e12,
    }


def _seconds(work: Callable[[], object], count: int, job: Job) -> float:
    for _ in range(3):
        work()
    if not job.rehearse:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        work()
    if not job.rehearse:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / count
