"""Evaluate a model, or the model of a run on its validation data. Every sample counts once, for any number of ranks."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from rebar.cli import count
from rebar.optim.averaging import update_bn
from rebar.reporting import console
from rebar.training.distributed import World, broadcast_buffers, sum_over_world
from rebar.training.error_hints import evaluation_error_hints
from rebar.training.execution import autocast, input_dtype
from rebar.training.options import Precision
from rebar.training.run import Run


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


def validate(run: Run, *, resolution: int | None = None, max_batches: int | None = None) -> Evaluation:
    """Evaluate the model, or its weight average, on the validation data. Every image counts once over all ranks.

    ``resolution`` is in pixels; default: the configured one. Every rank must call it. Raises Interrupted after a stop
    request, once a checkpoint is saved.
    """
    config, loader, model = run.config, run.val_loader, run.state.evaluated_model
    broadcast_buffers(model, run.world)
    batches = itertools.islice(loader.epoch(0, resolution or config.validation.resolution), max_batches)
    bar = console.progress(run.interruptible(batches), "validation", total=len(loader), enabled=run.shows_progress)
    with evaluation_error_hints(batch_size=config.validation.batch_size, option="--validation.batch_size"):
        return evaluate(
            model,
            run.normalizer().each(bar),
            world=run.world,
            precision=run.state.precision,
            flip_tta=config.validation.lr_tta,
        )


def validate_epoch(run: Run) -> dict[str, float]:
    """Validate after an epoch. Return the metrics by their names in the log."""
    update_average_bn(run)
    metrics = validate(run).metrics()
    run.health.on_validation(metrics["val/loss"], run.state.epoch + 1)
    return metrics


def update_average_bn(run: Run) -> None:
    """Recompute the BatchNorm statistics of an SWA average on training images. Does nothing for EMA."""
    state, loader = run.state, run.train_loader
    if state.average is None or not state.average.needs_bn_update or state.average.updates == 0:
        return
    position = loader.state_dict(state.meter.steps_of_attempt)
    update_bn(
        state.average.model,
        run.normalizer().each(loader.epoch(state.epoch + 1, run.resolution)),
        count=run.config.averaging.swa_bn_batches,
        dtype=input_dtype(state.precision),
    )
    loader.load_state_dict(position)


def validate_final_resolutions(run: Run) -> None:
    """Validate at ``validation.final_resolutions``. The checkpoint stores the results, so a resumed run skips them."""
    state, validation = run.state, run.config.validation
    missing = [size for size in validation.final if f"val/top1_{size}px" not in state.last_metrics]
    for size in missing:
        metrics = state.last_metrics
        if size != validation.resolution:
            metrics = validate(run, resolution=size).metrics()
        state.last_metrics |= add_resolution_suffix(metrics, size)
    if missing:
        run.save_checkpoint()


def print_evaluation(run: Run) -> None:
    """Evaluate the run's checkpoint or pretrained model, and print the accuracy. Every rank must call it."""
    result = validate(run)
    if run.world.is_main:
        print(f"{count(result.num_samples, 'image')}: {console.accuracy_line(result.metrics())}")
