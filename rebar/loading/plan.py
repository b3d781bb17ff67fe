"""What a loader makes of pictures and labels: crops of which kind and size, and what comes after decoding."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from rebar.errors import RebarError
from rebar.loading.crops import Cropper


class Batch(NamedTuple):
    """``images`` uint8 ``[n, height, width, 3]`` RGB and ``labels`` int64 ``[n]``, in main memory."""

    images: torch.Tensor
    labels: torch.Tensor


class Plan(Protocol):
    """Asked anew when an epoch begins; ``device`` is where ``finish`` moves its tensors to."""

    @property
    def device(self) -> torch.device | None: ...

    def cropper(self) -> Cropper: ...

    def size(self, resolution: int | None) -> tuple[int, int]: ...

    def finish(self, batch: Batch) -> tuple[Any, ...]: ...


@dataclass(frozen=True)
class PlainPlan:
    """Crops as bytes, and labels: nothing comes after."""

    chosen: Cropper
    device: torch.device | None = None

    def cropper(self) -> Cropper:
        """The one that was chosen."""
        return self.chosen

    def size(self, resolution: int | None) -> tuple[int, int]:
        """A square of ``resolution`` pixels. Raises RebarError where none was given."""
        if resolution is None or resolution < 1:
            raise RebarError(
                f"resolution is {resolution}: give Loader(resolution=...) or epoch(..., resolution) pixels"
            )
        return resolution, resolution

    def finish(self, batch: Batch) -> Batch:
        """The batch itself."""
        return batch
