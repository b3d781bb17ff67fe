"""Gradient accumulation: split a batch into micro-batches that fit into memory, for one optimizer step.

The gradient equals that of the full batch, except that BatchNorm normalizes each micro-batch by itself.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import nn


class MicroBatch(NamedTuple):
    """A part of a batch; ``weight`` is its fraction of the batch's samples."""

    images: torch.Tensor
    targets: torch.Tensor
    labels: torch.Tensor
    weight: float


def split_microbatches(
    model: nn.Module, images: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor, *, count: int
) -> Iterator[MicroBatch]:
    """Yield ``count`` micro-batches, or one per sample if the batch has fewer.

    Run forward and backward on each before requesting the next: DDP all-reduces the gradients with the last one only.
    """
    parts = list(
        zip(*(tensor.tensor_split(min(count, len(labels))) for tensor in (images, targets, labels)), strict=True)
    )
    for number, (micro_images, micro_targets, micro_labels) in enumerate(parts, start=1):
        skips_reduction = number < len(parts) and hasattr(model, "no_sync")
        with model.no_sync() if skips_reduction else nullcontext():  # type: ignore[operator]
            yield MicroBatch(micro_images, micro_targets, micro_labels, len(micro_labels) / len(labels))
