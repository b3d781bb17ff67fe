"""The training step with torch.compile: speed and compilation time."""

import functools
import gc
import time
from typing import Any, cast

import torch
from torch import nn

from benchmarks.gpu_proof.job import Job
from benchmarks.gpu_proof.training_step import build_stepper, time_steps
from rebar.training.execution import compile_model

CASES: tuple[tuple[str, dict[str, Any], str | None], ...] = (
    ("bf16", {}, None),
    ("fp16", {"precision": "fp16"}, None),
    ("bf16 without BlurPool", {"blurpool": False}, None),
    ("bf16, 160 px", {"resolution": 160}, None),
    ("bf16, CUDA graphs", {}, "reduce-overhead"),
    ("bf16, autotuned", {}, "max-autotune-no-cudagraphs"),
)


def run(job: Job) -> None:
    """Measure the eager step, then the compiled one, for each case."""
    torch.backends.cudnn.benchmark = True
    for name, settings, mode in CASES[:1] if job.rehearse else CASES:
        if job.seconds_left < 25:
            job.skip(name)
            continue
        job.attempt(functools.partial(measure, job, name, settings, mode), case=name)


def measure(job: Job, name: str, settings: dict[str, Any], mode: str | None) -> None:
    """Add a row for the eager and one for the compiled step."""
    sizes = {"resolution": settings.get("resolution", 224), "batch_size": 256}
    if job.rehearse:
        sizes = {"resolution": 32, "batch_size": 4}

    def wrap(model: nn.Module) -> nn.Module:
        if mode:
            return cast(nn.Module, torch.compile(model, mode=mode, dynamic=False))
        backend = "aot_eager" if job.rehearse else "inductor"
        return compile_model(model, {sizes["resolution"]}, backend=backend)

    for compiled in (False, True):
        if mode and not compiled:
            continue
        torch._dynamo.reset()
        began = time.monotonic()
        built = {**settings, **sizes, "wrap": wrap if compiled else lambda model: model}
        stepper = build_stepper(job, **built)
        result = time_steps(job, stepper, seconds=0.2 if job.rehearse else 1.5, **sizes)
        kind = mode or "default" if compiled else "eager"
        job.add(case=name, compile=kind, **sizes, **result, seconds=time.monotonic() - began)
        del stepper
        gc.collect()
        if not job.rehearse:
            torch.cuda.empty_cache()
