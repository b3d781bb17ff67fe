"""A batch, and its specification: crops, output size, and the operations after decoding."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from rebar.errors import RebarError
from rebar.loading.crops import Cropper


class Batch(NamedTuple):
    """``images`` uint8 ``[n, height, width, 3]`` RGB and ``labels`` int64 ``[n]``, in main memory."""

    images: torch.Tensor
    labels: torch.Tensor


class BatchSpec(Protocol):
    """Specifies how batches are made from images and labels. Read at the start of each epoch, so it may change."""

    @property
    def device(self) -> torch.device | None:
        """The device that :meth:`finish` moves its tensors to; None if it leaves them in main memory."""

    def cropper(self) -> Cropper:
        """Return the cropper for the next epoch."""

    def size(self, resolution: int | None) -> tuple[int, int]:
        """Return the images' (height, width) in pixels for the next epoch."""

    def finish(self, batch: Batch) -> tuple[Any, ...]:
        """Apply the operations after decoding and return the loader's output."""


@dataclass(frozen=True)
class CropSpec:
    """The BatchSpec of ``Loader(cropper=...)``: uint8 crops and labels."""

    crop: Cropper
    device: torch.device | None = None

    def cropper(self) -> Cropper:
        """Return the cropper."""
        return self.crop

    def size(self, resolution: int | None) -> tuple[int, int]:
        """Return ``(resolution, resolution)``. Raises RebarError if the resolution is missing or below 1."""
        if resolution is None or resolution < 1:
            raise RebarError(
                f"resolution: {resolution} is not a number of pixels. Set Loader(resolution=...) or call "
                "epoch(..., resolution).",
                code="loader-invalid-argument",
            )
        return resolution, resolution

    def finish(self, batch: Batch) -> Batch:
        """Return the batch unchanged."""
        return batch
