"""Gradient accumulation: a batch in pieces that fit into memory, one step of the optimizer.

The gradient is that of the whole batch; only BatchNorm sees the pieces, as it sees each process's part.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import nn


class Piece(NamedTuple):
    """Part of a batch, and which share of the batch it is."""

    images: torch.Tensor
    targets: torch.Tensor
    labels: torch.Tensor
    share: float


def split_microbatches(
    model: nn.Module, images: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor, *, count: int
) -> Iterator[Piece]:
    """Cut a batch into ``count`` pieces, or as many as it has samples.

    Each is to be followed by its forward and backward pass before the next is asked for: a distributed
    ``model`` adds up its gradients over the processes with the last piece only.
    """
    cut = list(
        zip(*(tensor.tensor_split(min(count, len(labels))) for tensor in (images, targets, labels)), strict=True)
    )
    for number, (some_images, some_targets, some_labels) in enumerate(cut, start=1):
        waits = number < len(cut) and hasattr(model, "no_sync")
        with model.no_sync() if waits else nullcontext():  # type: ignore[operator]
            yield Piece(some_images, some_targets, some_labels, len(some_labels) / len(labels))
