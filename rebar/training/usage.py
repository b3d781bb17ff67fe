"""What a run uses of the machine's memory and GPU, as the log names it."""

import contextlib

import torch

from rebar.reporting.memory import peak_host_gb
from rebar.training.distributed import World


def memory_metrics(world: World) -> dict[str, float]:
    """Peak memory of this process, GB; how busy its GPU was in the last second, where NVIDIA's library tells."""
    metrics = {"memory/host_peak_gb": round(peak_host_gb(), 3)}
    if world.device.type == "cuda":
        metrics["memory/gpu_peak_gb"] = round(torch.cuda.max_memory_allocated(world.device) / 1e9, 3)
        with contextlib.suppress(Exception):  # NVML has errors of its own, as under MIG; none is worth a run
            metrics["gpu/utilization"] = torch.cuda.utilization(world.device) / 100
    return metrics
