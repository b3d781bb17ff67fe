"""timm's train.py, reimplemented step by step.

- timm's own ResNet of the same name and its label-smoothing loss; channels_last (``--channels-last``) and autocast
  (``--amp``); timm's optimizer factory, ``sgd`` with Nesterov momentum and no decay for biases and BatchNorm.
- Its prefetching loader copies bytes on a side stream and normalizes them on the GPU; here the Normalizer does that.
- The gradient is reset after the step; the loss is read back at every 50th batch, its ``--log-interval``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2

from rebar.loading import Normalizer
from rebar.training.execution import autocast, gradient_scaler, input_dtype
from training_loops import LABEL_SMOOTHING, LEARNING_RATE, MOMENTUM, NUM_CLASSES, WEIGHT_DECAY, Epoch, Job

LOG_INTERVAL = 50


@contextmanager
def epochs(job: Job) -> Iterator[Callable[[], Epoch]]:
    """See :mod:`training_loops`."""
    torch.manual_seed(0)
    model: Any = timm.create_model(job.arch, num_classes=NUM_CLASSES)
    model = model.to(job.device, memory_format=torch.channels_last)
    criterion = LabelSmoothingCrossEntropy(LABEL_SMOOTHING)
    optimizer = create_optimizer_v2(model, "sgd", lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    scaler = gradient_scaler(job.precision, job.device)

    def train_one_epoch() -> Epoch:
        model.train()
        total, seen = torch.zeros((), device=job.device), 0.0
        optimizer.zero_grad()
        batches = Normalizer(job.device, input_dtype(job.precision)).each(job.epoch(job.batches))
        for number, (images, labels) in enumerate(batches):
            with autocast(job.precision, job.device):
                loss = criterion(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            total += loss.detach()
            if number % LOG_INTERVAL == 0:
                seen = loss.item()
                print(f"Train: 0 [{number}/{job.steps}] Loss: {seen:.3f}")
        return Epoch(total.item() / job.steps, job.steps * job.batch_size)

    yield train_one_epoch
