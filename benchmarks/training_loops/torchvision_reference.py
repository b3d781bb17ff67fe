"""torchvision's references/classification/train.py, reimplemented step by step.

- Images arrive normalized in float32 from worker processes and are copied to the GPU on the training stream,
  synchronously.
- Default memory format; one parameter group with weight decay; SGD with PyTorch's default implementation.
- After each step, loss, top-1 and top-5 are read back from the device into meters, whose medians and means are printed
  every tenth step.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from rebar.loading import Batch
from rebar.training.execution import autocast, gradient_scaler
from training_loops import LABEL_SMOOTHING, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Epoch, Job

PRINT_EVERY, WINDOW = 10, 20


class Meter:
    """The median of the last values, and the mean of all."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._total, self._count = 0.0, 0

    def update(self, value: float, count: int = 1) -> None:
        """Count a value ``count`` times."""
        self._last.append(value)
        self._total += value * count
        self._count += count

    @property
    def mean(self) -> float:
        return self._total / self._count

    def __str__(self) -> str:
        return f"{statistics.median(self._last):.4f} ({self.mean:.4f})"


@torch.no_grad()
def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return top-1 and top-5 of a batch in percent, on the device."""
    found = logits.topk(5, dim=1).indices.t() == labels[None]
    top1, top5 = (found[:k].flatten().sum(dtype=torch.float32) * (100 / len(labels)) for k in (1, 5))
    return top1, top5


@contextmanager
def epochs(job: Job) -> Iterator[Callable[[], Epoch]]:
    """See :mod:`training_loops`."""
    model = job.model().to(job.device)
    criterion = nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    scaler = gradient_scaler(job.precision, job.device)
    batches = job.normalized()

    def train_one_epoch() -> Epoch:
        model.train()
        meters = {name: Meter() for name in ("lr", "img/s", "loss", "acc1", "acc5", "time", "data")}
        for images, labels in _printing(job.epoch(batches), meters):
            started = time.time()
            images, labels = images.to(job.device), labels.to(job.device)
            with autocast(job.precision, job.device):
                logits = model(images)
                loss = criterion(logits, labels)
            optimizer.zero_grad()
            if scaler.is_enabled():
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()

            top1, top5 = accuracy(logits, labels)
            meters["loss"].update(loss.item())
            meters["lr"].update(optimizer.param_groups[0]["lr"])
            meters["acc1"].update(top1.item(), len(images))
            meters["acc5"].update(top5.item(), len(images))
            meters["img/s"].update(len(images) / (time.time() - started))
        return Epoch(meters["loss"].mean, job.steps * job.batch_size)

    yield train_one_epoch


def _printing(batches: list[Batch], meters: dict[str, Meter]) -> Iterable[Batch]:
    """Yield the batches, time them, and print the meters every tenth step."""
    end = time.time()
    for number, batch in enumerate(batches):
        meters["data"].update(time.time() - end)
        yield batch
        meters["time"].update(time.time() - end)
        if number % PRINT_EVERY == 0:
            print(f"[{number}/{len(batches)}]", "  ".join(f"{name}: {meter}" for name, meter in meters.items()))
        end = time.time()
