"""Exact accuracy: every sample once, however many processes share the work."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from rebar.config import option
from rebar.errors import RebarError
from rebar.training.distributed import World, sum_over_world
from rebar.training.execution import Precision, autocast


@dataclass(frozen=True)
class ValidationConfig:
    """Validation."""

    batch_size: int = option(512, help="batch size per process", minimum=1)
    resolution: int = option(224, help="resolution, pixels", minimum=1)
    final_resolutions: str = option(
        "", help="evaluate the finished run at these resolutions, pixels with commas between them: 224,256"
    )
    crop_ratio: float = option(
        0.875, help="side of the centred square that is shown, as a share of the shorter side", minimum=0.01, maximum=1
    )
    lr_tta: bool = option(True, help="also average each prediction with the mirrored image's")

    def __post_init__(self) -> None:
        wrong = [word for word in self._final() if not word.isdecimal() or int(word) == 0]
        if wrong:
            raise RebarError(
                f"validation.final_resolutions: '{wrong[0]}' is no number of pixels; give 224,256 or the like"
            )

    def _final(self) -> list[str]:
        return [word.strip() for word in self.final_resolutions.split(",") if word.strip()]

    @property
    def at_the_end(self) -> tuple[int, ...]:
        """``final_resolutions`` as numbers, each once."""
        return tuple(dict.fromkeys(map(int, self._final())))


@dataclass(frozen=True)
class Evaluation:
    """Shares of 1, over ``num_samples`` images; ``*_tta`` with mirror averaging, None where not done."""

    num_samples: int
    loss: float
    top1: float
    top5: float
    top1_tta: float | None = None
    top5_tta: float | None = None
    confusion: NDArray[np.int64] | None = None
    """Images by true and predicted class, ``[classes, classes]``, where that was asked for."""

    def metrics(self) -> dict[str, float]:
        """Under the log's names, without what was not done."""
        names = ("loss", "top1", "top5", "top1_tta", "top5_tta")
        return {f"val/{name}": getattr(self, name) for name in names if getattr(self, name) is not None}


def named_by_resolution(metrics: Mapping[str, float], resolution: int) -> dict[str, float]:
    """An evaluation's results among ``metrics`` under names that tell its resolution: ``val/top1_224px``."""
    return {
        f"{name}_{resolution}px": value
        for name, value in metrics.items()
        if name.startswith("val/") and not name.endswith("px")
    }


def _count_correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many labels are the first, and among the first five: float64 ``[2]``."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([ranked[:, 0].sum(), ranked.sum()]).to(torch.float64)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    *,
    world: World,
    precision: Precision,
    mirror: bool,
    confusion_of: int = 0,
) -> Evaluation:
    """Evaluate the bare (not DDP) model on this process's batches, and add up over the world.

    ``confusion_of`` classes are also counted by true and predicted class; 0 does not.
    """
    model.eval()
    # count, loss, top1, top5, top1 mirrored, top5 mirrored; float64 counts exactly far beyond any dataset
    sums = torch.zeros(6, dtype=torch.float64, device=world.device)
    pairs = torch.zeros(confusion_of**2, dtype=torch.int64, device=world.device)
    for images, labels in batches:
        if len(labels) == 0:
            continue
        with autocast(precision, world.device):
            logits = model(images)
            mirrored = model(images.flip(3)) if mirror else logits
        logits = logits.float()
        sums[0] += len(labels)
        sums[1] += F.cross_entropy(logits, labels, reduction="sum")
        sums[2:4] += _count_correct(logits, labels)
        sums[4:6] += _count_correct(logits + mirrored.float(), labels)
        if confusion_of:
            pairs += torch.bincount(labels * confusion_of + logits.argmax(dim=1), minlength=confusion_of**2)
    count, *totals = sum_over_world(sums, world).tolist()
    loss, top1, top5, top1_tta, top5_tta = (total / count for total in totals)
    confusion = None
    if confusion_of:
        confusion = sum_over_world(pairs, world).cpu().numpy().reshape(confusion_of, confusion_of)
    if not mirror:
        return Evaluation(int(count), loss, top1, top5, confusion=confusion)
    return Evaluation(int(count), loss, top1, top5, top1_tta, top5_tta, confusion)
