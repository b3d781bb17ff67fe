"""Mixed precision: which type autocast uses, and whether gradients need scaling.

How a step is carried out: memory, speed and processes, hardly what it computes.

Torch's random numbers of a step as a function of (seed, step, process), so that a resumed run draws alike.
"""

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


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Turn 'auto' into fp16 on a GPU (the reference's) and 32 on the CPU; refuse nothing, warn of slowness."""
    if precision == "auto":
        return "fp16" if device.type == "cuda" else "32"
    if device.type == "cpu" and precision == "fp16":
        warn("precision fp16 needs a GPU: computing in 32 bit")
        return "32"
    if device.type == "cuda" and precision == "bf16" and torch.cuda.get_device_capability(device) < (8, 0):
        warn(f"{torch.cuda.get_device_name(device)} has no fast bf16: fp16 is the faster choice there")
    return precision


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """The context of a forward pass in a resolved precision."""
    dtype = input_dtype(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def input_dtype(precision: Precision) -> torch.dtype:
    """The type in which the images are handed to the network: what its first convolution would make of them."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)


def gradient_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss in fp16, whose range is small; does nothing in the other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


MAX_STATIC_SIZES = 4
"""Up to so many resolutions are compiled each for itself; more share one program of any size."""


@dataclass(frozen=True)
class ExecutionConfig:
    """Execution."""

    accumulate: int = option(1, help="pieces a batch is computed in: less memory, the same step", minimum=1)
    gradient_checkpointing: bool = option(False, help="compute residual blocks again going back: half the memory")
    channels_last: bool = option(True, help="images and convolutions with the channels innermost")
    tf32: bool = option(True, help="let 32-bit products round to TF32 (NVIDIA, from A100 on)")
    compile_model: bool = option(False, help="compile the model with torch.compile: slow start, faster steps")
    compile_backend: str = option("inductor", help="compile_model: torch.compile's backend")
    sync_bn: bool = option(False, help="BatchNorm over all GPUs' images instead of each GPU's own")

    def __post_init__(self) -> None:
        if self.compile_model and self.gradient_checkpointing:
            raise RebarError("execution: choose one of compile_model and gradient_checkpointing")

    def switches(self) -> Mapping[str, tuple[str, bool]]:
        """What each setting depends on to have an effect, and whether that is on."""
        return {"compile_backend": ("compile_model", self.compile_model)}


def allow_tf32(allowed: bool) -> None:
    """Let cuBLAS and cuDNN compute 32-bit products in TF32, or forbid it; no effect on a CPU."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def compile_for(model: nn.Module, resolutions: set[int], *, backend: str) -> nn.Module:
    """The model compiled for images of these sizes (pixels). Raises RebarError for an unknown backend.

    A few sizes get a program each. For many, as progressive resizing in small steps has, one program takes
    any size, so that nothing is compiled again while the sizes change.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise RebarError(f"execution.compile_backend: torch has no '{backend}' here; it has {', '.join(sorted(known))}")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * MAX_STATIC_SIZES)
    dynamic = len(resolutions) > MAX_STATIC_SIZES
    # Without fixed layouts Inductor compiles the way back through a convolution for its size alone (torch 2.13).
    options: dict[str, Any] | None = {"force_layout_optimization": True} if dynamic and backend == "inductor" else None
    return torch.compile(model, dynamic=dynamic, backend=backend, options=options)  # type: ignore[return-value]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators, the GPUs' too, for what a step draws (dropout, stochastic depth). Does not wait."""
    bits = random_bits(RngKeys(seed, step, np.array([rank])), Stream.TORCH)
    torch.manual_seed(int(bits[0, 0] >> np.uint64(1)))
