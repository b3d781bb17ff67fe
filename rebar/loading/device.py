"""From uint8 pictures in main memory to normalised tensors on the device."""

from collections.abc import Iterable, Iterator

import torch

from rebar.loading.loader import Batch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalizer:
    """Moves a batch to ``device`` as bytes (a quarter of the traffic of floats) and normalises it there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.mean = self._per_channel(IMAGENET_MEAN)
        self.std = self._per_channel(IMAGENET_STD)

    def _per_channel(self, values: tuple[float, float, float]) -> torch.Tensor:
        return torch.tensor(values, device=self.device).mul_(255).view(1, 3, 1, 1)

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 ``[n, 3, h, w]`` in channels_last layout, and int64 ``[n]`` labels."""
        images = batch.images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        labels = batch.labels.to(self.device, non_blocking=True)
        return images.to(torch.float32).sub_(self.mean).div_(self.std), labels

    def each(self, batches: Iterable[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Normalise batch after batch."""
        return map(self, batches)
