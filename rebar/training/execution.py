"""Execution of a training step: precision, compilation, gradient accumulation and random number generators."""

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from rebar.cli import warn
from rebar.errors import RebarError
from rebar.loading.rng import RngKeys, Stream, random_bits
from rebar.training.options import Precision

MAX_STATIC_RESOLUTIONS = 4
"""With more resolutions than this, torch.compile uses one graph with dynamic shapes instead of one per resolution."""
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""The flags of x86 and ARM CPUs that compute in bf16."""
CPU_INFO = Path("/proc/cpuinfo")


def cpu_lacks_bf16() -> bool:
    """Return whether the flags of this machine's CPU are known and include no bf16 instructions."""
    try:
        words = set(CPU_INFO.read_text().split())
    except OSError:
        return False
    return not BF16_FLAGS & words


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Return the precision to use on a device; 'auto' is fp16 on a GPU, as in ffcv-imagenet, and 32 on the CPU.

    Warns if the device does not support the precision, or supports it only slowly.
    """
    if precision == "auto":
        return "fp16" if device.type == "cuda" else "32"
    if device.type == "cpu" and precision == "fp16":
        warn("precision fp16 needs a GPU; 32 bit is used instead")
        return "32"
    if device.type == "cpu" and precision == "bf16" and cpu_lacks_bf16():
        warn("training.precision bf16 is slow on this CPU, which has no bf16 instructions. Use --training.precision 32")
    if device.type == "cuda" and precision == "bf16" and torch.cuda.get_device_capability(device) < (8, 0):
        warn(f"precision bf16 is slow on {torch.cuda.get_device_name(device)}; fp16 is faster")
    return precision


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Return the autocast context for a resolved precision."""
    dtype = input_dtype(precision)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def input_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of input images: the one to which autocast would cast them in the first convolution."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)


def gradient_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Return a GradScaler, enabled for fp16 only."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def allow_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in cuBLAS and cuDNN for float32 operations. No effect on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def compile_model(model: nn.Module, resolutions: set[int], *, backend: str) -> nn.Module:
    """Compile the model for images of these resolutions in px.

    Each of a few resolutions gets its own graph. Many resolutions, as in progressive resizing with small steps, share
    one graph with dynamic shapes to avoid recompilation. Raises RebarError for an unknown backend.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise RebarError(
            f"execution.compile_backend: '{backend}' is unknown. Choose one of {', '.join(sorted(known))}.",
            code="compile-unknown-backend",
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * MAX_STATIC_RESOLUTIONS)
    dynamic = len(resolutions) > MAX_STATIC_RESOLUTIONS
    # Without a fixed layout, Inductor specializes the backward pass of convolutions to the resolution (torch 2.13).
    options: dict[str, Any] | None = {"force_layout_optimization": True} if dynamic and backend == "inductor" else None
    return torch.compile(model, dynamic=dynamic, backend=backend, options=options)  # type: ignore[return-value]


# ------------------------------------------------------------------ gradient accumulation


class MicroBatch(NamedTuple):
    """A slice of a batch. ``weight`` is its fraction of the batch's samples."""

    images: torch.Tensor
    targets: torch.Tensor
    labels: torch.Tensor
    weight: float


def split_microbatches(
    model: nn.Module, images: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor, *, count: int
) -> Iterator[MicroBatch]:
    """Split a batch into ``count`` micro-batches for gradient accumulation, or fewer if it has fewer samples.

    Run forward and backward on each before requesting the next: DDP all-reduces gradients on the last one only. The
    accumulated gradient equals that of the full batch, except that BatchNorm normalizes each micro-batch separately.
    """
    parts = list(
        zip(*(tensor.tensor_split(min(count, len(labels))) for tensor in (images, targets, labels)), strict=True)
    )
    for number, (micro_images, micro_targets, micro_labels) in enumerate(parts, start=1):
        skips_reduction = number < len(parts) and hasattr(model, "no_sync")
        with model.no_sync() if skips_reduction else nullcontext():  # type: ignore[operator]
            yield MicroBatch(micro_images, micro_targets, micro_labels, len(micro_labels) / len(labels))


# ------------------------------------------------------------------ random number generators


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators for a step (dropout, stochastic depth), so that a resumed run draws the same numbers.

    Does not synchronize with the device.
    """
    bits = random_bits(RngKeys(seed, step, np.array([rank])), Stream.TORCH)
    torch.manual_seed(int(bits[0, 0] >> np.uint64(1)))


def rng_states(device: torch.device) -> dict[str, Any]:
    """Return the generator states of torch (CPU and ``device``), NumPy and Python, in a form that a checkpoint stores.

    Layers such as dropout use these generators. The loader's augmentations do not: they are stateless.
    """
    name, keys, *rest = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": [version, list(internal), gauss],
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng_states(states: dict[str, Any], device: torch.device) -> None:
    """Restore the result of :func:`rng_states`. A GPU's generator is left unchanged if it was saved without a GPU."""
    torch.set_rng_state(states["torch"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
