"""Profile the training step: its most expensive kernels, and the fraction of time per kind of operation."""

import re

import torch

from benchmarks.gpu_proof.job import Job
from benchmarks.gpu_proof.training_step import build_stepper, synchronize

STEPS = 5
GROUPS = (  # the first match applies
    ("optimizer", r"multi_tensor|fused_sgd|FusedSgd|adam|foreach"),
    ("BatchNorm", r"batch_?norm|bn_fw|bn_bw|batchnorm|norm_fwd|norm_bwd"),
    ("blur", r"depthwise|dw_conv|c1_k1|dgrad2d_c1|wgrad2d_c1|fprop2d_c1|grouped_direct|conv2d_grouped"),
    ("convolution", r"conv|xmma|cutlass|implicit|fprop|dgrad|wgrad|sm\d+_|gemm|winograd|nvjet"),
    ("pooling", r"pool"),
    ("ReLU and sums", r"relu|clamp|threshold|CUDAFunctor_add|AddFunctor|elementwise"),
    ("loss", r"softmax|nll|cross_entropy"),
    ("copies and casts", r"copy|memcpy|memset|cast|nchwToNhwc|nhwcToNchw|transpose|Memcpy|Memset|fill"),
    ("reductions", r"reduce|argmax"),
)


def run(job: Job) -> None:
    """Profile the eager step at 224 px in bf16."""
    torch.backends.cudnn.benchmark = True
    resolution, batch_size = (32, 4) if job.rehearse else (224, 256)
    stepper = build_stepper(job, resolution=resolution, batch_size=batch_size)
    for number in range(6):
        stepper(number)
    synchronize(job)
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU if job.rehearse else activity.CUDA]) as profile:
        for number in range(STEPS):
            stepper(number)
        synchronize(job)
    attribute = "self_cpu_time_total" if job.rehearse else "self_device_time_total"
    events = [event for event in profile.key_averages() if getattr(event, attribute, 0) > 0]
    events.sort(key=lambda event: -getattr(event, attribute))
    total = sum(getattr(event, attribute) for event in events)
    job.note(step_ms=total / STEPS / 1000, settings=f"{resolution} px, batch {batch_size}, bf16, BlurPool, eager")
    shares: dict[str, float] = {}
    for event in events:
        group = next((name for name, pattern in GROUPS if re.search(pattern, event.key, re.IGNORECASE)), "other")
        shares[group] = shares.get(group, 0) + getattr(event, attribute) / total
    job.note(shares={name: round(share, 4) for name, share in sorted(shares.items(), key=lambda pair: -pair[1])})
    for event in events[:20]:
        microseconds = getattr(event, attribute)
        job.add(
            kernel=event.key[:160],
            calls_per_step=event.count / STEPS,
            ms_per_step=microseconds / STEPS / 1000,
            share=microseconds / total,
        )
