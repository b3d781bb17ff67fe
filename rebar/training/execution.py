"""Execution of a step: precision, memory format, compilation and seeding."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from rebar.cli import warn
from rebar.config import option
from rebar.errors import RebarError
from rebar.loading.rng import RngKeys, Stream, random_bits

Precision = Literal["auto", "32", "fp16", "bf16"]
MAX_STATIC_RESOLUTIONS = 4
"""Up to this number of resolutions, torch.compile makes a graph for each; above, one graph with dynamic shapes."""


@dataclass(frozen=True)
class ExecutionConfig:
    """Execution."""

    accumulate: int = option(
        1, help="micro-batches per batch: gradient accumulation, for less memory and the same step", minimum=1
    )
    gradient_checkpointing: bool = option(
        False, help="recompute residual blocks in the backward pass: half the activation memory"
    )
    channels_last: bool = option(True, help="channels_last memory format")
    tf32: bool = option(True, help="allow TF32 in 32-bit matrix products (NVIDIA A100 and later)")
    compile_model: bool = option(False, help="compile the model with torch.compile: slow start, faster steps")
    compile_backend: str = option("inductor", help="compile_model: torch.compile's backend")
    sync_bn: bool = option(False, help="SyncBatchNorm: statistics over the images of all GPUs")

    def __post_init__(self) -> None:
        if self.compile_model and self.gradient_checkpointing:
            raise RebarError(
                "execution: compile_model and gradient_checkpointing are both on. Choose one.", code="config-conflict"
            )

    def conditions(self) -> Mapping[str, tuple[str, bool]]:
        """Return, for each option, the condition under which it has an effect, and whether that is met."""
        return {"compile_backend": ("compile_model", self.compile_model)}


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Return the precision to use on a device; 'auto' is fp16 on a GPU, as in ffcv-imagenet, and 32 on the CPU.

    Warns if the device does not support the precision, or not efficiently.
    """
    if precision == "auto":
        return "fp16" if device.type == "cuda" else "32"
    if device.type == "cpu" and precision == "fp16":
        warn("precision fp16 needs a GPU; 32 bit is used instead")
        return "32"
    if device.type == "cuda" and precision == "bf16" and torch.cuda.get_device_capability(device) < (8, 0):
        warn(f"precision bf16 is slow on {torch.cuda.get_device_name(device)}; fp16 is faster")
    return precision


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Return the autocast context of a forward pass in a resolved precision."""
    dtype = input_dtype(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def input_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of input images: that to which autocast would convert them in the first convolution."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)


def gradient_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Return a gradient scaler, which is disabled unless the precision is fp16."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def allow_tf32(allowed: bool) -> None:
    """Set whether cuBLAS and cuDNN may use TF32 for 32-bit products. No effect on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def compile_model(model: nn.Module, resolutions: set[int], *, backend: str) -> nn.Module:
    """Compile the model for images of these resolutions in px.

    A few resolutions get a graph each. Many, as with progressive resizing in small steps, share a graph with dynamic
    shapes, so that a change of resolution does not recompile. Raises RebarError for an unknown backend.
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


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators for a step (dropout, stochastic depth), so that a resumed run draws the same numbers.

    Does not synchronize with the device.
    """
    bits = random_bits(RngKeys(seed, step, np.array([rank])), Stream.TORCH)
    torch.manual_seed(int(bits[0, 0] >> np.uint64(1)))
