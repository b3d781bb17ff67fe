"""Exact evaluation of a model: every sample counts once, for any number of ranks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from rebar.config import ConfigError, option
from rebar.training.distributed import World, sum_over_world
from rebar.training.execution import Precision, autocast


@dataclass(frozen=True)
class ValidationConfig:
    """Validation."""

    batch_size: int = option(512, help="batch size per rank", minimum=1)
    resolution: int = option(224, help="resolution in px", minimum=1)
    final_resolutions: str = option(
        "", help="evaluate the finished run at these resolutions in px, separated by commas: 224,256"
    )
    crop_ratio: float = option(
        0.875, help="side of the center crop, relative to the shorter side of the image", minimum=0.01, maximum=1
    )
    lr_tta: bool = option(True, help="flip TTA: also average the predictions for the image and its horizontal flip")

    def __post_init__(self) -> None:
        invalid = [word for word in self._final_words() if not word.isdecimal() or int(word) == 0]
        if invalid:
            raise ConfigError(
                f"validation.final_resolutions: '{invalid[0]}' is not a resolution. Give numbers such as 224,256.",
                code="config-invalid-value",
            )

    def _final_words(self) -> list[str]:
        return [word.strip() for word in self.final_resolutions.split(",") if word.strip()]

    @property
    def final(self) -> tuple[int, ...]:
        """``final_resolutions`` as numbers, without duplicates."""
        return tuple(dict.fromkeys(map(int, self._final_words())))


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracies (fractions) over ``num_samples`` images.

    - top1_tta, top5_tta: accuracies with flip TTA, or None without it.
    - confusion: counts by true and predicted class, ``[classes, classes]``, or None.
    """

    num_samples: int
    loss: float
    top1: float
    top5: float
    top1_tta: float | None = None
    top5_tta: float | None = None
    confusion: NDArray[np.int64] | None = None

    def metrics(self) -> dict[str, float]:
        """Return the results that are not None, by their names in the log."""
        names = ("loss", "top1", "top5", "top1_tta", "top5_tta")
        return {f"val/{name}": getattr(self, name) for name in names if getattr(self, name) is not None}


def add_resolution_suffix(metrics: Mapping[str, float], resolution: int) -> dict[str, float]:
    """Return the ``val/`` metrics with the resolution appended to their names, such as ``val/top1_224px``."""
    return {
        f"{name}_{resolution}px": value
        for name, value in metrics.items()
        if name.startswith("val/") and not name.endswith("px")
    }


def _count_correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Count correct top-1 and top-5 predictions. Returns float64 ``[2]``."""
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([hits[:, 0].sum(), hits.sum()]).to(torch.float64)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    *,
    world: World,
    precision: Precision,
    flip_tta: bool,
    confusion_classes: int = 0,
) -> Evaluation:
    """Evaluate a model, not wrapped in DDP, on this rank's batches, and sum the results over all ranks.

    ``confusion_classes`` is the size of the confusion matrix, or 0 for none.
    """
    model.eval()
    # count, loss, top1, top5, top1 with TTA, top5 with TTA; float64 counts exactly up to 2^53
    sums = torch.zeros(6, dtype=torch.float64, device=world.device)
    pairs = torch.zeros(confusion_classes**2, dtype=torch.int64, device=world.device)
    for images, labels in batches:
        if len(labels) == 0:
            continue
        with autocast(precision, world.device):
            logits = model(images)
            flipped = model(images.flip(3)) if flip_tta else logits
        logits = logits.float()
        sums[0] += len(labels)
        sums[1] += F.cross_entropy(logits, labels, reduction="sum")
        sums[2:4] += _count_correct(logits, labels)
        sums[4:6] += _count_correct(logits + flipped.float(), labels)
        if confusion_classes:
            predicted = logits.argmax(dim=1)
            pairs += torch.bincount(labels * confusion_classes + predicted, minlength=confusion_classes**2)
    count, *totals = sum_over_world(sums, world).tolist()
    loss, top1, top5, top1_tta, top5_tta = (total / count for total in totals)
    confusion = None
    if confusion_classes:
        confusion = sum_over_world(pairs, world).cpu().numpy().reshape(confusion_classes, confusion_classes)
    if not flip_tta:
        return Evaluation(int(count), loss, top1, top5, confusion=confusion)
    return Evaluation(int(count), loss, top1, top5, top1_tta, top5_tta, confusion)
