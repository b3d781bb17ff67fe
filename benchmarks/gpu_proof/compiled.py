"""The step compiled by torch.compile: its speed, and what the compilation costs."""

import gc
import time

import torch
from torch import nn

from benchmarks.gpu_proof.job import Job
from benchmarks.gpu_proof.training_step import build_stepper, time_steps
from rebar.training.execution import compile_for

CASES = (
    ("224 px", 224, True, None),
    ("224 px without BlurPool", 224, False, None),
    ("160 px", 160, True, None),
    ("224 px, CUDA graphs", 224, True, "reduce-overhead"),
    ("224 px, autotuned", 224, True, "max-autotune-no-cudagraphs"),
)


def run(job: Job) -> None:
    """Measure the eager step and the compiled one after it, in turn."""
    torch.backends.cudnn.benchmark = True
    for name, resolution, blurpool, mode in CASES[:1] if job.rehearse else CASES:
        if job.seconds_left < 25:
            job.add(case=name, error="no time left")
            continue
        job.attempt(lambda: measure(job, name, resolution, blurpool, mode), case=name)  # noqa: B023


def measure(job: Job, name: str, resolution: int, blurpool: bool, mode: str | None) -> None:
    """Add a row for the eager and one for the compiled step."""
    resolution, batch_size = (32, 4) if job.rehearse else (resolution, 256)

    def wrap(model: nn.Module) -> nn.Module:
        if mode:
            return torch.compile(model, mode=mode, dynamic=False)  # type: ignore[return-value]
        backend = "aot_eager" if job.rehearse else "inductor"
        return compile_for(model, {resolution}, backend=backend)

    for compiled in (False, True):
        if mode and not compiled:
            continue
        torch._dynamo.reset()
        began = time.monotonic()
        sizes = {"resolution": resolution, "batch_size": batch_size}
        stepper = build_stepper(job, blurpool=blurpool, wrap=wrap if compiled else lambda model: model, **sizes)
        result = time_steps(job, stepper, seconds=0.2 if job.rehearse else 1.5, **sizes)
        kind = mode or "default" if compiled else "eager"
        job.add(case=name, compile=kind, blurpool=blurpool, **sizes, **result, seconds=time.monotonic() - began)
        del stepper
        gc.collect()
        if not job.rehearse:
            torch.cuda.empty_cache()
