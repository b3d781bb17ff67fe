"""Mixed precision: which type autocast uses, and whether gradients need scaling."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

from rebar.cli import warn

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
    """The type in which the pictures are handed to the network: what its first convolution would make of them."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)


def gradient_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss in fp16, whose range is small; does nothing in the other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
